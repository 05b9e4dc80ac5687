"""Load Miniature, Prepare Face and Predict Identity, against the core called directly."""

from __future__ import annotations

import shutil
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from .conftest import ROOT, Host


@pytest.fixture(scope="module")
def base(loaded_pack: Any) -> Any:
    from hyperdream_core.pipelines.diffusers.loading import load_base

    return load_base()


def comfy_base(host: Host, miniature: Any) -> Any:
    with host.module("host.run").ordinary_tensors():
        made = host.module("making.comfy_base").ComfyBase(*miniature)
        made.load()
        return made


def test_the_miniature_predicts_what_it_does_outside(host: Host, miniature: Any, base: Any) -> None:
    ours, generator = comfy_base(host, miniature), torch.Generator().manual_seed(1)
    latents = torch.randn(2, base.family.latent_channels, 8, 8, generator=generator)
    prompts, t = ["a sks face, smiling", ""], torch.tensor([0.9, 0.3])
    with torch.no_grad():
        wanted = base.predict(latents, t, base.encode_prompt(prompts))
        got = ours.predict(latents, t, ours.encode_prompt(prompts))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert ours.noise.name == base.noise.name
    every = base.noise.levels(1000)
    assert torch.equal(ours.noise.model_time(every), base.noise.model_time(every))
    for mine, its in zip(astuple(ours.noise.coefficients(every)), astuple(base.noise.coefficients(every)), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-5)


def test_its_vae_codes_as_it_does_outside(host: Host, miniature: Any, base: Any, portrait: Tensor) -> None:
    ours = comfy_base(host, miniature)
    pictures = torch.nn.functional.interpolate(portrait.movedim(-1, 1), size=(64, 64), mode="area")
    latents = base.encode_image(pictures)
    torch.testing.assert_close(ours.encode_image(pictures), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode_latents(latents), base.decode_latents(latents), atol=1e-5, rtol=1e-5)


def test_the_miniature_is_read_without_diffusers(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    # The double's UNet is diffusers' own, so only what reads the files is run without it.
    made = host.module("host.miniature")
    for name in ("small_model", "small_clip", "small_vae"):
        monkeypatch.setattr(made, name, lambda *given, **named: given[0])
    for package in ("diffusers", "accelerate"):
        monkeypatch.setitem(sys.modules, package, None)
    family, text, autoencoder = host.module("making.load_miniature").load_miniature()
    assert family.name == "miniature" and all(name.startswith("text_model.") for name in text)
    assert type(autoencoder).__name__ == "SmallAutoencoder"


def test_a_damaged_miniature_is_one_sentence(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = host.module("making.load_miniature")
    refused = pytest.raises(host.core("errors").FileFormatError, match="install HyperDream again")
    monkeypatch.setattr(module, "bundled_weights", lambda: tmp_path)
    with refused:
        module.load_miniature()
    shutil.copytree(ROOT / "weights" / "miniature" / "base", tmp_path / "miniature" / "base")
    settings = tmp_path / "miniature" / "base" / "vae" / "config.json"
    settings.write_text(settings.read_text("utf-8").replace('"latent_channels": ', '"latent_channels": 1'), "utf-8")
    with refused:
        module.load_miniature()
    next(settings.parent.glob("*.safetensors")).unlink()
    with refused:
        module.load_miniature()


def test_a_node_predicts_what_the_core_predicts(host: Host, identity: Any, portrait: Tensor) -> None:
    from hyperdream_core.bundled import bundled_weights
    from hyperdream_core.pictures.files import square_crop
    from hyperdream_core.pipelines.predictors.hypernetwork_predictor import read_hypernetwork_predictor
    from hyperdream_core.pipelines.predictors.predict import predict_identity

    network = read_hypernetwork_predictor(bundled_weights() / "miniature" / "hypernetwork.safetensors").network
    wanted = predict_identity(network, square_crop(portrait[0].movedim(-1, 0), 64)[None])
    for name, coefficients in wanted.coefficients.items():
        torch.testing.assert_close(identity.coefficients[name].up, coefficients.up, atol=1e-6, rtol=1e-5)


def test_nothing_that_travels_is_an_inference_tensor(identity: Any, faces: Any) -> None:
    tensors = [one for pair in identity.coefficients.values() for one in (pair.down, pair.up)]
    assert not [one for one in [*tensors, faces.at(64), faces.prepared.pixels] if one.is_inference()]


def test_networks_are_in_the_memory_managers_hands(host: Host, faces: Any) -> None:
    (predictor,) = host.run("LoadPredictor", predictor="miniature (built in)")
    host.run("PredictIdentity", predictor=predictor, faces=faces)
    assert predictor.patcher in [patcher for patcher, _ in host.comfy("comfy.model_management").loaded]


def test_faces_are_cut_from_the_photograph_at_any_size(host: Host, astronaut: Any) -> None:
    image = torch.from_numpy(np.asarray(astronaut, dtype=np.float32) / 255)[None]
    settings: dict[str, Any] = {"detector": "cascade", "order": "size", "index": 0, "on_no_face": "stop"}
    faces, preview, report = host.run("PrepareFace", image=image, **settings)
    large, small = faces.at(512), faces.at(64)
    assert faces.at(512) is not large and torch.equal(large, faces.prepared.pixels)
    reduced = torch.nn.functional.interpolate(large, size=(64, 64), mode="area")
    assert float((reduced - small).abs().mean()) < 0.03
    assert preview.shape == image.shape and not torch.equal(preview, image)
    assert "picture 1: face 1 of" in report and "quality" in report


def test_landmarks_of_comfyui_take_the_detectors_place(host: Host, astronaut: Any) -> None:
    image = torch.from_numpy(np.asarray(astronaut, dtype=np.float32) / 255)[None]
    five = np.array([[203, 112], [240, 112], [222, 135], [205, 150], [238, 150]], dtype=np.float32)
    landmarks = {"frames": [[{"landmarks_xy": five, "bbox_xyxy": (180, 70, 265, 170), "score": 0.9}]]}
    settings: dict[str, Any] = {"detector": "auto", "order": "size", "index": 0, "on_no_face": "stop"}
    faces, _, report = host.run("PrepareFace", image=image, landmarks=landmarks, **settings)
    assert report.startswith("faces looked for by: faces handed in")
    torch.testing.assert_close(faces.prepared.pictures[0].faces[0].landmarks, torch.from_numpy(five))
    with pytest.raises(
        host.core("errors").ReferenceImageError, match="the landmarks are of 1 pictures, but there are 2"
    ):
        host.run("PrepareFace", image=image.repeat(2, 1, 1, 1), landmarks=landmarks, **settings)


def test_a_picture_without_a_face_is_one_sentence(host: Host) -> None:
    settings: dict[str, Any] = {"detector": "cascade", "order": "size", "index": 0}
    grey = torch.full((1, 80, 90, 3), 0.5)
    with pytest.raises(host.core("errors").ReferenceImageError, match=r"90x80 px\) shows no face"):
        host.run("PrepareFace", image=grey, on_no_face="stop", **settings)
    faces, _, report = host.run("PrepareFace", image=grey, on_no_face="whole-picture", **settings)
    assert faces.at(64).shape == (1, 3, 64, 64) and "the whole picture is used" in report
