"""Save, Load, Export, Blend and Measure: files in their places, and hostile ones harmless."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .conftest import ROOT, Host


def difference(first: Any, second: Any) -> float:
    pairs = [(first.expand()[name], second.expand()[name]) for name in first.coefficients]
    return max(float((a.up @ a.down - b.up @ b.down).abs().max()) for a, b in pairs)


def save(host: Host, identity: Any, name: str = "sofia", **more: Any) -> Path:
    return Path(host.run("SaveIdentity", **({"identity": identity, "name": name, "notes": ""} | more))[0])


def test_what_is_saved_is_loaded(host: Host, identity: Any, portrait: Tensor) -> None:
    path = save(host, identity, notes="from the beach", preview=portrait)
    assert path == host.folder / "output" / "hyperdream" / "sofia.safetensors"
    assert path.with_suffix(".png").is_file() and path.stat().st_size < 100_000
    schema = host.module("").LoadIdentity.define_schema()
    assert schema.inputs[0].facts["options"] == ["sofia.safetensors"]
    (loaded,) = host.run("LoadIdentity", identity="sofia.safetensors")
    # Stored in 16 bit.
    assert difference(loaded, identity) < 3e-3 and loaded.made_by["notes"] == "from the beach"
    assert "notes" not in identity.made_by


def test_the_browser_is_told_that_the_lists_are_old(host: Host, identity: Any) -> None:
    shown = host.module("").SaveIdentity.execute(identity=identity, name="sofia", notes="").ui
    assert shown["hyperdream_saved"] == ("sofia.safetensors",)
    assert shown["text"][0].startswith("saved as ")
    assert "hyperdream_saved" in (ROOT / "web" / "identity_lists.js").read_text(encoding="utf-8")


def test_a_missing_identity_is_refused_before_the_prompt_runs(host: Host, identity: Any) -> None:
    save(host, identity)
    validate = host.module("").LoadIdentity.validate_inputs
    assert validate(identity="sofia.safetensors") is True and validate() is True
    for name in ("portrait.safetensors", "../sofia.safetensors", "notes.txt", ""):
        message = validate(identity=name)
        assert message.startswith(f"{name or '(nothing chosen)'} is not among the identities in models/hyperdream")


def test_a_name_is_never_used_twice(host: Host, identity: Any) -> None:
    names = [save(host, identity, name).name for name in ("sofia", "sofia", "sofia.safetensors")]
    assert names == ["sofia.safetensors", "sofia-2.safetensors", "sofia-3.safetensors"]


@pytest.mark.parametrize(
    "name", ["../sofia", "/tmp/sofia", "C:\\sofia", "a/b", "", "  ", ".hidden", "nul", "CON.x", "x" * 101, "a\0b", "a."]
)
@pytest.mark.parametrize("node", ["SaveIdentity", "ExportLora"])
def test_a_name_that_is_no_plain_name_is_refused(host: Host, identity: Any, node: str, name: str) -> None:
    more = {"notes": ""} if node == "SaveIdentity" else {}
    with pytest.raises(host.core("errors").ConfigError, match="cannot be a name"):
        host.run(node, identity=identity, name=name, **more)
    assert not [path for path in host.folder.rglob("*") if path.is_file()]


def test_a_changed_file_is_noticed(host: Host, identity: Any) -> None:
    path, node = save(host, identity), host.module("").LoadIdentity
    first = node.fingerprint_inputs(identity=path.name)
    assert node.fingerprint_inputs(identity=path.name) == first
    path.write_bytes(save(host, identity.scaled(0.5), "other").read_bytes())
    assert node.fingerprint_inputs(identity=path.name) != first


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "is empty"),
        (b"\x80\x02cos\nsystem", "old PyTorch file"),
        (b"\xff" * 64, "truncated or no safetensors file"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "does not say what it holds, but"),
    ],
)
def test_a_hostile_file_is_in_no_list_and_refused_by_name(
    host: Host, caplog: pytest.LogCaptureFixture, contents: bytes, words: str
) -> None:
    folder = host.folder / "models" / "hyperdream"
    folder.mkdir(parents=True)
    (folder / "evil.safetensors").write_bytes(contents)
    (folder / "notes.txt").write_text("not listed")
    for _ in range(2):
        assert host.module("").LoadIdentity.define_schema().inputs[0].facts["options"] == []
    (said,) = [one for one in caplog.messages if "left out of the list" in one]
    assert "evil.safetensors: " in said
    refused = host.module("").LoadIdentity.validate_inputs(identity="evil.safetensors")
    assert refused.startswith("evil.safetensors: ") and refused.endswith(
        "choose another identity, or save this one anew"
    )
    with pytest.raises(host.core("errors").FileFormatError, match=f"evil.safetensors: .*{words}"):
        host.run("LoadIdentity", identity="evil.safetensors")


def test_predictors_that_are_none_are_in_no_list(host: Host, identity: Any) -> None:
    folder, node = host.folder / "models" / "hyperdream" / "predictors", host.module("").LoadPredictor
    folder.mkdir(parents=True)
    (folder / "empty.safetensors").touch()
    save(host, identity).rename(folder / "person.safetensors")
    shutil.copy(host.core("bundled").bundled_predictor("miniature"), folder / "whole.safetensors")
    assert node.define_schema().inputs[0].facts["options"] == ["miniature (built in)", "whole.safetensors"]
    assert all(node.validate_inputs(predictor=name) is True for name in ("miniature (built in)", "whole.safetensors"))
    assert node.validate_inputs() is True
    assert node.validate_inputs(predictor="empty.safetensors").startswith("empty.safetensors: is empty")
    assert node.validate_inputs(predictor="person.safetensors").startswith(
        "person.safetensors: is another kind of file"
    )
    assert node.validate_inputs(predictor="gone.safetensors").startswith("gone.safetensors is not among the files in")


def test_a_file_that_is_mended_is_listed(host: Host, identity: Any) -> None:
    path, node = save(host, identity), host.module("").LoadIdentity
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert node.define_schema().inputs[0].facts["options"] == []
    path.write_bytes(whole)
    assert node.define_schema().inputs[0].facts["options"] == [path.name]


@pytest.mark.parametrize("name", ["gone.safetensors", "../../secret.safetensors", ""])
def test_a_file_that_is_not_there_is_a_sentence(host: Host, name: str) -> None:
    (host.folder / "secret.safetensors").write_bytes(b"")
    with pytest.raises(host.core("errors").FileFormatError, match="there is no such file in"):
        host.run("LoadIdentity", identity=name)


def test_paths_of_extra_model_paths_are_honoured(host: Host, identity: Any, tmp_path: Path) -> None:
    folders, extra = host.comfy("folder_paths"), tmp_path / "disk" / "people"
    folders.start_in(tmp_path / "comfy")
    folders.folder_names_and_paths["hyperdream"] = ([str(extra)], set())  # as ComfyUI leaves it: no endings
    (extra / "predictors").mkdir(parents=True)
    shutil.copy(host.core("bundled").bundled_predictor("miniature"), extra / "predictors" / "p.safetensors")
    (extra / "readme.txt").touch()
    host.module("host.folders").register_folders()
    host.module("host.folders").register_folders()
    save(host, identity).rename(extra / "ana.safetensors")
    assert host.module("").LoadIdentity.define_schema().inputs[0].facts["options"] == ["ana.safetensors"]
    options = host.module("").LoadPredictor.define_schema().inputs[0].facts["options"]
    assert options == ["miniature (built in)", "p.safetensors"]
    assert len(folders.get_folder_paths("hyperdream")) == 3
    (extra / "predictors" / "p.safetensors").write_bytes(b"")
    with pytest.raises(host.core("errors").FileFormatError, match=r"p.safetensors: is empty"):
        host.run("LoadPredictor", predictor="p.safetensors")


def test_an_export_is_a_stock_lora_where_the_loader_looks(host: Host, identity: Any, miniature: Any) -> None:
    tensors, path = host.run("ExportLora", identity=identity, name="sofia", model=miniature[0])
    assert Path(path) == host.folder / "output" / "loras" / "hyperdream" / "sofia.safetensors"
    family, pairs = host.core("formats.lora_file").read_lora(Path(path))
    assert family == "miniature" and set(pairs) == set(identity.coefficients)
    assert len(tensors) == 3 * len(pairs) and all(key.startswith("lora_unet_") for key in tensors)
    for name, pair in identity.expand().items():
        torch.testing.assert_close(pairs[name].up @ pairs[name].down, pair.up @ pair.down, atol=1e-3, rtol=1e-2)


def test_beside_an_export_lie_its_words_and_its_picture(host: Host, identity: Any, portrait: Tensor) -> None:
    _, path = host.run("ExportLora", identity=identity, name="sofia", preview=portrait)
    words = json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))
    assert words["activation text"] == "a sks face" and words["preferred weight"] == 1.0
    shown = host.core("pictures.files").read_image(Path(path).with_suffix(".png"))
    torch.testing.assert_close(shown, portrait[0].movedim(-1, 0), atol=1 / 255, rtol=0)
    host.run("ExportLora", identity=identity, name="without picture")
    beside = sorted(one.name for one in Path(path).parent.glob("without*"))
    assert beside == ["without picture.json", "without picture.safetensors"]


def test_an_export_for_another_family_is_refused(host: Host, miniature: Any) -> None:
    foreign = host.core("pipelines.polishing.trainable_adapters").without_effect(
        host.core("bases").get_base("sd15"), [None], ("attention", 5, 7)
    )
    with pytest.raises(host.core("errors").BaseMismatchError, match="its LoRA would do nothing there"):
        host.run("ExportLora", identity=foreign, name="sofia", model=miniature[0])


def test_a_blend_lies_between_two_people(host: Host, identity: Any) -> None:
    other = identity.scaled(-3.0)
    blended = {
        share: host.run("BlendIdentities", first=identity, second=other, share=share)[0] for share in (0, 0.25, 1)
    }
    assert blended[0] is identity and blended[1] is other
    # 0.75 of the one and 0.25 of minus three times the same is nothing.
    assert difference(blended[0.25], identity.scaled(0.0)) < 1e-5


def test_people_for_different_checkpoints_do_not_blend(host: Host, identity: Any) -> None:
    foreign = host.core("pipelines.polishing.trainable_adapters").without_effect(
        host.core("bases").get_base("sd15"), [None], ("attention", 50, 100)
    )
    for share in (0.0, 0.5):
        with pytest.raises(host.core("errors").BaseMismatchError, match="basis sizes and noise bands must agree"):
            host.run("BlendIdentities", first=identity, second=foreign, share=share)


def test_likeness_of_the_person_is_high_and_of_noise_low(host: Host, faces: Any, portrait: Tensor) -> None:
    small = torch.nn.functional.interpolate(portrait.movedim(-1, 1), size=(64, 64), mode="area").movedim(1, -1)
    noise = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    own, report = host.run("MeasureLikeness", images=small, faces=faces)
    assert own > 0.9 and "by the miniature's identity judge" in report
    assert host.run("MeasureLikeness", images=noise, faces=faces)[0] < 0.5


def test_without_a_recogniser_large_pictures_are_not_measured(host: Host, faces: Any) -> None:
    likeness, report = host.run("MeasureLikeness", images=torch.rand(1, 96, 96, 3), faces=faces)
    assert likeness == 0.0 and report.startswith("not measured")
