"""Polish Identity: on the loaded model, which is as it was afterwards, and nothing is lost on Stop."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .conftest import Host


def weights(miniature: Any) -> dict[str, Tensor]:
    modules = {"unet": miniature[0].model, "clip": miniature[1].cond_stage_model, "vae": miniature[2].first_stage_model}
    return {f"{part}.{name}": one.clone() for part, m in modules.items() for name, one in m.state_dict().items()}


def unchanged(miniature: Any, before: dict[str, Tensor]) -> bool:
    after = weights(miniature)
    return all(torch.equal(after[name], one) for name, one in before.items())


def polished(host: Host, miniature: Any, faces: Any, identity: Any = None, steps: int = 3, seed: int = 5) -> Any:
    model, clip, vae = miniature
    inputs = {"model": model, "clip": clip, "vae": vae, "faces": faces, "identity": identity}
    return host.run("PolishIdentity", **inputs, steps=steps, caption="", seed=seed)


def advanced(host: Host, miniature: Any, faces: Any, **settings: Any) -> Any:
    model, clip, vae = miniature
    schema = host.module("").PolishIdentityAdvanced.define_schema()
    defaults = {one.id: one.facts["default"] for one in schema.inputs if "default" in one.facts}
    inputs = {"model": model, "clip": clip, "vae": vae, "faces": faces}
    return host.run("PolishIdentityAdvanced", **inputs, **(defaults | settings))


def same(first: Any, second: Any) -> bool:
    pairs = [(first.coefficients[name], second.coefficients[name]) for name in first.coefficients]
    return all(torch.equal(a.down, b.down) and torch.equal(a.up, b.up) for a, b in pairs)


def test_it_improves_and_repeats_and_leaves_the_base_bit_for_bit(
    host: Host, miniature: Any, faces: Any, identity: Any
) -> None:
    before = weights(miniature)
    flags = [one.requires_grad for one in miniature[0].model.parameters()]
    once, curve = polished(host, miniature, faces, identity)
    twice, _ = polished(host, miniature, faces, identity)
    other, _ = polished(host, miniature, faces, identity, seed=6)
    assert same(once, twice) and not same(once, other) and not same(once, identity)
    assert unchanged(miniature, before)
    assert not [name for name, module in miniature[0].model.named_modules() if "forward" in module.__dict__]
    assert [one.requires_grad for one in miniature[0].model.parameters()] == flags
    assert not [one for one in miniature[0].model.parameters() if one.grad is not None]
    assert curve.dim() == 4 and curve.shape[-1] == 3 and float(curve.std()) > 0.05


def test_it_does_what_the_core_does_on_the_same_base(host: Host, miniature: Any, faces: Any) -> None:
    from hyperdream_core.miniature.world.captions import describe_references
    from hyperdream_core.pipelines.diffusers.loading import load_base
    from hyperdream_core.pipelines.polishing.polish import polish
    from hyperdream_core.pipelines.polishing.polish_config import PolishConfig

    base, pictures = load_base(), faces.at(64)
    # Where nobody says what the picture shows, both let the miniature read it off.
    captions = describe_references(base, pictures)
    assert len(captions) == 1 and ", " in captions[0]
    wanted = polish(base, pictures, None, PolishConfig(steps=2, seed=5), captions=captions)
    got, _ = polished(host, miniature, faces, steps=2)
    for name, pair in wanted.identity.expand().items():
        ours = got.expand()[name]
        torch.testing.assert_close(ours.up @ ours.down, pair.up @ pair.down, atol=2e-4, rtol=2e-2)


def test_weights_loaded_in_inference_mode_can_be_trained_upon(host: Host, miniature: Any, faces: Any) -> None:
    unet = miniature[0].model.diffusion_model
    with torch.inference_mode():
        layer = unet.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q")
        layer.weight = torch.nn.Parameter(layer.weight.clone(), requires_grad=False)
    original = layer.weight
    assert original.is_inference()
    polished(host, miniature, faces, steps=1)
    replaced = unet.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q").weight
    assert not replaced.is_inference() and torch.equal(replaced, original)


def test_pictures_and_progress_are_shown_on_the_way(host: Host, miniature: Any, faces: Any, identity: Any) -> None:
    polished(host, miniature, faces, identity, steps=10)
    shown = host.comfy("comfy.utils").shown
    # The bar stays at 0, and Stop is looked at, while the prediction draws what polishing must not unlearn.
    assert [step for step, _ in groupby(step for step, _, _ in shown)] == list(range(11))
    assert sum(preview is not None for _, _, preview in shown) == 2
    pictures = {step: preview for step, _, preview in shown if preview is not None}
    assert set(pictures) == {0, 10}
    assert pictures[0][0] == "JPEG" and pictures[0][1].size == (64, 64)
    assert pictures[0][1].tobytes() != pictures[10][1].tobytes()


def stop_at(host: Host, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Stop when the bar shows that step."""
    utils, memory = host.comfy("comfy.utils"), host.comfy("comfy.model_management")
    original = utils.ProgressBar.update_absolute

    def update(self: Any, value: int, total: Any = None, preview: Any = None) -> None:
        original(self, value, total, preview)
        memory.stop_pressed = memory.stop_pressed or value == step

    monkeypatch.setattr(utils.ProgressBar, "update_absolute", update)


def saved(host: Host) -> list[Path]:
    return sorted((host.folder / "output" / "hyperdream").glob("*.safetensors"))


def test_stop_ends_the_prompt_and_keeps_the_best_so_far(
    host: Host, miniature: Any, faces: Any, identity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(miniature)
    stop_at(host, monkeypatch, 2)
    with pytest.raises(host.comfy("comfy.model_management").InterruptProcessingException):
        polished(host, miniature, faces, identity, steps=50)
    (path,) = saved(host)
    (kept,) = host.run("LoadIdentity", identity=path.name)
    assert kept.made_by["finetune_steps"] == "2" and kept.made_by["stopped"] == "by the user"
    assert unchanged(miniature, before)


def test_stop_within_the_unet_is_noticed_as_well(
    host: Host, miniature: Any, faces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, memory, calls = miniature[0].model.diffusion_model, host.comfy("comfy.model_management"), []
    original = type(unet).forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Tensor:
        calls.append(1)
        memory.stop_pressed = len(calls) > 3
        memory.throw_exception_if_processing_interrupted()
        result: Tensor = original(self, *arguments, **named)
        return result

    monkeypatch.setattr(type(unet), "forward", forward)
    with pytest.raises(memory.InterruptProcessingException):
        advanced(host, miniature, faces, steps=50, preview_every=0, caption="smiling")
    assert len(calls) == 4 and len(saved(host)) == 1


def test_stop_can_go_on_with_what_there_is(
    host: Host, miniature: Any, faces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(host, monkeypatch, 2)
    got, _ = advanced(host, miniature, faces, steps=50, on_stop="save and go on")
    assert got.made_by["finetune_steps"] == "2" and len(saved(host)) == 1


def test_a_run_that_went_on_half_trained_is_trained_whole_by_the_next_prompt(
    host: Host, miniature: Any, faces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = host.module("").PolishIdentityAdvanced
    before = node.fingerprint_inputs(steps=50, model=None)
    advanced(host, miniature, faces, steps=1, preview_every=0)
    assert node.fingerprint_inputs(steps=50, model=None) == before
    stop_at(host, monkeypatch, 2)
    advanced(host, miniature, faces, steps=50, on_stop="save and go on")
    # ComfyUI takes a node's output from its cache only while this is as it was.
    assert node.fingerprint_inputs(steps=50, model=None) != before


def test_stop_before_the_first_step_ends_the_prompt_without_an_error(
    host: Host, miniature: Any, faces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(host, monkeypatch, 0)
    with pytest.raises(host.comfy("comfy.model_management").InterruptProcessingException):
        polished(host, miniature, faces, steps=50)
    assert not saved(host)


def test_a_clip_or_vae_of_another_checkpoint_is_named(
    host: Host, miniature: Any, faces: Any, identity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, (_, clip, vae) = host.core("errors"), miniature
    wide = torch.zeros(1, 77, 768), torch.zeros(1, 768)
    with monkeypatch.context() as patch:
        patch.setattr(type(clip), "encode_from_tokens", lambda self, tokens, return_pooled=False: wide)
        with pytest.raises(errors.BaseMismatchError, match="the CLIP makes tokens of 768 numbers"):
            polished(host, miniature, faces)
    with monkeypatch.context() as patch:
        patch.setattr(type(vae), "encode", lambda self, pictures: torch.zeros(len(pictures), 16, 8, 8))
        with pytest.raises(errors.BaseMismatchError, match="the VAE makes latents of shape"):
            polished(host, miniature, faces)


def test_an_inpainting_checkpoint_takes_identities_and_is_not_polished_on(
    host: Host, miniature: Any, faces: Any, identity: Any
) -> None:
    model, clip, _ = miniature
    layer = model.model.diffusion_model.get_submodule("input_blocks.0.0")
    ordinary = layer.weight
    out, channels, *kernel = ordinary.shape
    more = torch.zeros(out, channels + 1, *kernel)
    layer.weight = torch.nn.Parameter(torch.cat([ordinary.data, more], 1), requires_grad=False)
    try:
        host.run("ApplyIdentity", model=model, clip=clip, identity=identity, strength=1.0)
        schema = host.module("").HybridGuidance.define_schema()
        dials = {one.id: one.facts["default"] for one in schema.inputs if "default" in one.facts}
        host.run("HybridGuidance", model=model, clip=clip, identity=identity, **dials)
        with pytest.raises(host.core("errors").BaseMismatchError, match="polish on the ordinary checkpoint"):
            polished(host, miniature, faces)
    finally:
        layer.weight = ordinary


def test_memory_is_asked_for_before_the_start_and_its_want_is_a_sentence(
    host: Host, miniature: Any, faces: Any, identity: Any
) -> None:
    memory = host.comfy("comfy.model_management")
    polished(host, miniature, faces, steps=1)
    asked = max(needed for patcher, needed in memory.loaded if patcher.model is miniature[0].model)
    family = host.core("bases").get_base("miniature")
    estimate = host.core("pipelines.polishing.memory")
    room = estimate.Room(free=memory.free, number_size=4, device="cpu")
    assert asked == estimate.bytes_needed(family, 64, 4, room) > 1e6
    memory.loaded.clear()
    # What is preserved passes in samples of its own, as many as fit, whatever the batch.
    advanced(host, miniature, faces, identity=identity, steps=1, batch=1, samples_at_once=3, preview_every=0)
    advanced(host, miniature, faces, identity=identity, steps=1, batch=1, preserve=0.0, preview_every=0)
    asked = [needed for patcher, needed in memory.loaded if patcher.model is miniature[0].model and needed]
    assert asked == [estimate.bytes_needed(family, 64, count, room) for count in (3, 1)]
    memory.loaded.clear()
    # With less memory fewer pass at once, and then their insides are computed twice.
    for share in (1.9, 0.9):
        memory.free = share * estimate.bytes_needed(family, 64, 1, room)
        polished(host, miniature, faces, steps=1)
    asked = [needed for patcher, needed in memory.loaded if patcher.model is miniature[0].model and needed]
    assert asked[0] == estimate.bytes_needed(family, 64, 2, room)
    assert any(asked[-1] == estimate.bytes_needed(family, 64, count, room, recomputes=True) for count in (1, 2, 3, 4))
    memory.free = 1e5
    memory.loaded.clear()
    with pytest.raises(host.core("errors").ConfigError, match=r"needs about \d+ MB beside the model"):
        polished(host, miniature, faces, steps=1)
    assert not memory.loaded


def test_saving_memory_gives_the_same_identity(host: Host, miniature: Any, faces: Any) -> None:
    fast, lean = (advanced(host, miniature, faces, steps=2, memory=way)[0] for way in ("fast", "save memory"))
    for name, pair in fast.expand().items():
        other = lean.expand()[name]
        torch.testing.assert_close(other.up @ other.down, pair.up @ pair.down, atol=1e-5, rtol=1e-3)


def test_what_is_preserved_and_how_many_samples_pass_at_once_are_the_cores_settings(
    host: Host, miniature: Any, faces: Any, identity: Any
) -> None:
    def made(**settings: Any) -> Any:
        return advanced(host, miniature, faces, identity=identity, steps=2, preview_every=0, **settings)[0]

    def distance(one: Any) -> float:
        before, after = identity.expand(), one.expand()
        return sum(float((after[n].up @ after[n].down - p.up @ p.down).square().sum()) for n, p in before.items())

    whole, in_parts, forgetful = made(samples_at_once=8), made(samples_at_once=3), made(preserve=0.0)
    for name, pair in whole.expand().items():
        other = in_parts.expand()[name]
        torch.testing.assert_close(other.up @ other.down, pair.up @ pair.down, atol=1e-4, rtol=1e-2)
    assert not same(whole, forgetful) and distance(forgetful) != distance(whole)


def test_bad_input_is_one_sentence(host: Host, miniature: Any, faces: Any) -> None:
    errors = host.core("errors")
    foreign = host.core("pipelines.polishing.trainable_adapters").without_effect(
        host.core("bases").get_base("sd15"), [None], ("attention", 5, 7)
    )
    with pytest.raises(errors.BaseMismatchError, match="made for 'sd15', but the base is 'miniature'"):
        polished(host, miniature, faces, foreign)
    with pytest.raises(errors.ConfigError, match=r"size must be a multiple of 8 .* got 60"):
        advanced(host, miniature, faces, size=60)
    with pytest.raises(errors.ConfigError, match="the caption has 2 lines for 1 pictures"):
        advanced(host, miniature, faces, steps=1, caption="smiling\nsad")
