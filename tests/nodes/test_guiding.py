"""Hybrid Guidance and Regional Identities: what a sampler gets from a MODEL that mixes base and people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .conftest import Host

SETTINGS = {
    "prompt": "a [V] face, smiling", "negative_prompt": "", "base_prompt": "", "guidance": "hybrid",
    "base_scale": -1.0, "subject_scale": -1.0, "schedule": "", "strength": 1.0,
}  # fmt: skip
SHARES = {"null_strength": -1.0, "rescale": 0.0, "rank_share": 1.0, "start_percent": 0.0, "end_percent": 1.0,
          "weights": ""}  # fmt: skip
APPLY = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mode": "live",
         "down": 1.0, "middle": 1.0, "up": 1.0, "text": 1.0}  # fmt: skip


@pytest.fixture
def noise(host: Host) -> Tensor:
    family = host.core("bases").get_base("miniature")
    side = family.picture_size // family.vae_factor
    return torch.randn(2, family.latent_channels, side, side, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def strong(host: Host, identity: Any) -> Any:
    """The identity, strong enough that nothing about it hides in rounding."""
    return scaled(identity, 1.5)


def scaled(identity: Any, factor: float) -> Any:
    coefficients = {name: replace(one, up=factor * one.up) for name, one in identity.coefficients.items()}
    return replace(identity, coefficients=coefficients)


def guided(host: Host, miniature: Any, **inputs: Any) -> Any:
    """MODEL, positive and negative of the node that has these inputs."""
    if "mask_1" in inputs:
        return host.run("RegionalIdentities", model=miniature[0], clip=miniature[1], **(SETTINGS | inputs))
    is_advanced = bool(set(inputs) & {*SHARES, "neutral"})
    settings = SETTINGS | {"lora": "none"} | (SHARES if is_advanced else {}) | inputs
    node = "HybridGuidanceAdvanced" if is_advanced else "HybridGuidance"
    return host.run(node, model=miniature[0], clip=miniature[1], **settings)


def drawn(host: Host, made: Any, noise: Tensor, cfg: float = 3.0, steps: int = 4, guider: Any = None) -> Tensor:
    """Latents of MODEL, positive and negative."""
    samplers = host.comfy("comfy.samplers")
    samplers.batches.clear()
    guider = guider or samplers.CFGGuider(made[0])
    guider.set_conds(made[1], made[2])
    guider.set_cfg(cfg)
    with torch.inference_mode():
        latents: Tensor = guider.sample(noise, steps)
    return latents


def plain(host: Host, model: Any, clip: Any, prompt: str) -> Any:
    """The same three by ComfyUI's own nodes."""
    encode = host.module("host.models").conditioning
    with torch.inference_mode():
        return model, encode(clip, prompt), encode(clip, "")


def sizes(host: Host) -> list[int]:
    return [len(batch) for batch in host.comfy("comfy.samplers").batches]


NEUTRAL = [
    {"guidance": "plain"},
    {"guidance": "blend"},
    {"guidance": "hybrid", "null_strength": 1.0},
    {"guidance": "weights", "weights": "0, 0, -2, 3"},
]


@pytest.mark.parametrize("dials", NEUTRAL, ids=lambda dials: dials["guidance"])
def test_neutral_dials_are_plain_guidance_bit_for_bit(
    host: Host, miniature: Any, identity: Any, noise: Tensor, dials: dict[str, Any]
) -> None:
    applied = host.run("ApplyIdentityAdvanced", model=miniature[0], clip=miniature[1], identity=identity, **APPLY)
    wanted = drawn(host, plain(host, *applied, "a sks face, smiling"), noise)
    made = guided(host, miniature, identity=identity, **dials)
    assert torch.equal(drawn(host, made, noise), wanted)
    assert sizes(host) == [2] * 4
    assert float((wanted - drawn(host, plain(host, *miniature[:2], "a sks face, smiling"), noise)).abs().mean()) > 0.01


def test_subject_scale_and_strength_zero_are_the_base_bit_for_bit(
    host: Host, miniature: Any, identity: Any, noise: Tensor
) -> None:
    wanted = drawn(host, plain(host, *miniature[:2], "a face, smiling"), noise)
    for dials in ({"subject_scale": 0.0}, {"guidance": "mix", "subject_scale": 0.0}, {"schedule": "0-1:0"}):
        assert torch.equal(drawn(host, guided(host, miniature, identity=identity, **dials), noise), wanted), dials
        assert sizes(host) == [2] * 4
    # The base's scale leads wherever the sampler's cfg stands.
    made = guided(host, miniature, identity=identity, base_scale=3.0, subject_scale=0.0)
    assert torch.equal(drawn(host, made, noise, cfg=7.0), wanted)
    assert torch.equal(drawn(host, guided(host, miniature, identity=identity, strength=0.0), noise), wanted)
    assert not [name for name, module in miniature[0].model.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize(
    ("dials", "weights"),
    [
        ({"base_scale": 4.0, "subject_scale": 2.5}, (-3.0, 1.5, 0.0, 2.5)),
        ({"guidance": "mix", "base_scale": 4.0, "subject_scale": 0.25}, (-3.0, 3.0, 0.0, 1.0)),
        ({"guidance": "base-null"}, (-2.0, 0.0, 0.0, 3.0)),
        ({"guidance": "blend", "base_scale": 2.0, "subject_scale": 0.5}, (-0.5, 1.0, -1.0, 1.5)),
        ({"guidance": "weights", "weights": "1, -1, -1, 2"}, (1.0, -1.0, -1.0, 2.0)),
    ],
    ids=["hybrid", "mix", "base-null", "blend", "weights"],
)
def test_a_step_is_the_weighted_sum_of_separate_models(
    host: Host, miniature: Any, strong: Any, noise: Tensor, dials: dict[str, Any], weights: tuple[float, ...]
) -> None:
    model, clip = host.run("ApplyIdentityAdvanced", model=miniature[0], clip=miniature[1], identity=strong, **APPLY)
    base = plain(host, *miniature[:2], "a face, smiling")
    person = plain(host, model, clip, "a sks face, smiling")
    # At cfg 0 and 1 a sampler gives the two predictions themselves.
    parts = [drawn(host, one, noise, cfg, steps=1) for one in (base, person) for cfg in (0.0, 1.0)]
    wanted = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    made = guided(host, miniature, identity=strong, **({"null_strength": -1.0} | dials))
    torch.testing.assert_close(drawn(host, made, noise, steps=1), wanted, atol=2e-4, rtol=1e-4)
    assert sizes(host) == [sum(weight != 0 for weight in weights)]


def test_bands_evaluate_nothing_that_does_not_count(host: Host, miniature: Any, identity: Any, noise: Tensor) -> None:
    made = guided(host, miniature, identity=identity, schedule="0-0.35:1, 0.35-0.65:0.5, 0.65-1:0")
    drawn(host, made, noise, steps=11)
    # Noise from 1 down in tenths: the base alone, the mix, and at equal scales the person away from the base.
    assert sizes(host) == [2] * 4 + [3] * 3 + [2] * 4
    drawn(host, guided(host, miniature, identity=identity, start_percent=0.5, end_percent=0.8), noise, steps=11)
    assert sizes(host) == [2] * 11
    drawn(host, guided(host, miniature, identity=identity), noise, cfg=1.0)
    assert sizes(host) == [1] * 4


def test_a_guider_with_a_formula_of_its_own_gives_the_same(
    host: Host, miniature: Any, strong: Any, noise: Tensor
) -> None:
    samplers = host.comfy("comfy.samplers")

    class Own(samplers.CFGGuider):  # type: ignore[misc, name-defined]
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any, seed: Any = None) -> Tensor:
            raise AssertionError("the weights stand for the whole formula")

    made = guided(host, miniature, identity=strong, base_scale=4.0, subject_scale=2.0)
    assert torch.equal(drawn(host, made, noise, guider=Own(made[0])), drawn(host, made, noise))


def test_a_guider_without_a_negative_prompt(host: Host, miniature: Any, identity: Any, noise: Tensor) -> None:
    samplers, error = host.comfy("comfy.samplers"), host.core("errors").ConfigError

    class Basic(samplers.CFGGuider):  # type: ignore[misc, name-defined]
        def set_conds(self, positive: Any, negative: Any) -> None:
            self.inner_set_conds({"positive": positive})

    with pytest.raises(error, match="Basic has no negative prompt"):
        made = guided(host, miniature, identity=identity, base_scale=3.0)
        drawn(host, made, noise, cfg=1.0, guider=Basic(made[0]))
    made = guided(host, miniature, identity=identity)
    with_negative = drawn(host, made, noise, cfg=1.0)
    assert torch.equal(drawn(host, made, noise, cfg=1.0, guider=Basic(made[0])), with_negative)


def test_a_prediction_that_another_pack_asks_for(host: Host, miniature: Any, strong: Any, noise: Tensor) -> None:
    samplers = host.comfy("comfy.samplers")
    seen = []

    def ask(executor: Any, x: Tensor, timestep: Tensor, options: Any, seed: Any) -> Tensor:
        """As self-attention guidance does in the middle of a step."""
        conds = executor.class_obj.conds
        stranger = [{"cross_attn": conds["positive"][0]["cross_attn"]}]
        asked = [conds["positive"], None, stranger]
        seen.append(samplers.calc_cond_batch(executor.class_obj.inner_model, asked, x, timestep, options))
        result: Tensor = executor(x, timestep, options, seed)
        return result

    made = guided(host, miniature, identity=strong, guidance="plain")
    model = made[0].clone()
    model.add_wrapper_with_key("predict_noise", "another pack", ask)
    wanted = drawn(host, made, noise, steps=1)
    assert torch.equal(drawn(host, (model, *made[1:]), noise, steps=1), wanted)
    ((prompt, nothing, stranger),) = seen
    torch.testing.assert_close(prompt, drawn(host, made, noise, cfg=1.0, steps=1), atol=1e-4, rtol=1e-4)
    base = drawn(host, plain(host, *miniature[:2], "a sks face, smiling"), noise, cfg=1.0, steps=1)
    torch.testing.assert_close(stranger, base, atol=1e-4, rtol=1e-4)
    assert not nothing.any() and not torch.allclose(prompt, stranger, atol=1e-2)


def test_equal_prompts_without_wordings(host: Host, miniature: Any, strong: Any, noise: Tensor) -> None:
    made = guided(host, miniature, identity=strong, base_prompt="a sks face, smiling", base_scale=4.0)
    by_hand = (made[0], *plain(host, *miniature[:2], "a sks face, smiling")[1:])
    assert torch.equal(drawn(host, by_hand, noise), drawn(host, made, noise))


def test_a_lora_file_stands_in_for_an_identity(
    host: Host, miniature: Any, identity: Any, noise: Tensor, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    write = host.core("formats.lora_file").write_lora
    pairs = identity.expand()
    for dialect in ("kohya", "diffusers"):
        write(folder / f"{dialect}.safetensors", pairs, family="miniature", dialect=dialect, dtype=torch.float32)
    wanted = drawn(host, guided(host, miniature, identity=identity, subject_scale=2.0), noise)
    for dialect in ("kohya", "diffusers"):
        made = guided(host, miniature, lora=f"{dialect}.safetensors", subject_scale=2.0)
        torch.testing.assert_close(drawn(host, made, noise), wanted, atol=2e-5, rtol=1e-4)


def test_a_lora_of_convolutions_and_text_is_what_merging_it_gives(
    host: Host, miniature: Any, noise: Tensor, tmp_path: Path
) -> None:
    family, keys = host.core("bases").get_base("miniature"), host.core("bases.keys")
    places = {
        keys.to_kohya(name, family): host.module("host.patches").text_weight(name, family)
        if name.startswith("text_encoder")
        else f"diffusion_model.{keys.to_ldm(name, family)}.weight"
        for name in host.core("bases.modules").modules(family)
    }
    chosen = [
        next(name for name in places if name.endswith(ending))
        for ending in ("_proj_in", "_conv1", "_ff_net_2", "_downsamplers_0_conv", "_mlp_fc1")
    ]
    generator = torch.Generator().manual_seed(5)
    known = {
        **dict(miniature[0].model.named_parameters(remove_duplicate=False)),
        **dict(miniature[1].cond_stage_model.named_parameters(remove_duplicate=False)),
    }
    tensors = {}
    deltas = {}
    for name in chosen:
        weight = known[places[name]]
        outputs, inputs, *kernel = weight.shape
        down = torch.randn(3, inputs, *kernel, generator=generator) / weight[0].numel() ** 0.5
        up = 0.5 * torch.randn(outputs, 3, *(1 for _ in kernel), generator=generator)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.5)}
        deltas[places[name]] = 0.5 * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    host.core("formats.container").write_tensors(folder / "style.safetensors", {}, tensors)
    made = guided(host, miniature, lora="style.safetensors", prompt="a face", guidance="plain")
    found = drawn(host, made, noise, steps=1)
    base = plain(host, *miniature[:2], "a face")
    assert float((found - drawn(host, base, noise, steps=1)).abs().mean()) > 0.01
    originals = {name: known[name].data for name in deltas}
    try:
        for name, change in deltas.items():
            known[name].data = known[name].data + change
        wanted = drawn(host, plain(host, *miniature[:2], "a face"), noise, steps=1)
    finally:
        for name, original in originals.items():
            known[name].data = original
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)


def test_people_are_confined_to_their_masks(host: Host, miniature: Any, strong: Any, noise: Tensor) -> None:
    other = scaled(strong, -1.0)
    side = 8 * noise.shape[-1]
    left = torch.zeros(1, side, side)
    left[..., : side // 2] = 1
    masks = {"mask_1": left, "mask_2": 1 - left}
    made = guided(host, miniature, identity_1=strong, identity_2=other, **masks, base_scale=3.0, subject_scale=2.0)
    picture = drawn(host, made, noise, steps=1)
    assert sizes(host) == [4]
    alone = [
        drawn(host, guided(host, miniature, identity=one, base_scale=3.0, subject_scale=2.0), noise, steps=1)
        for one in (strong, other)
    ]
    half = noise.shape[-1] // 2
    torch.testing.assert_close(picture[..., :half], alone[0][..., :half], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(picture[..., half:], alone[1][..., half:], atol=2e-4, rtol=1e-4)
    # Outside all masks the base draws.
    nowhere = {"mask_1": torch.zeros(1, side, side), "mask_2": torch.zeros(1, side, side)}
    made = guided(host, miniature, identity_1=strong, identity_2=other, **nowhere)
    base = drawn(host, plain(host, *miniature[:2], "a face, smiling"), noise, steps=1)
    torch.testing.assert_close(drawn(host, made, noise, steps=1), base, atol=1e-5, rtol=1e-5)


def test_rescale_brings_back_the_prompted_contrast(host: Host, miniature: Any, strong: Any, noise: Tensor) -> None:
    dials = {"identity": strong, "base_scale": 7.0, "subject_scale": 7.0}
    full = drawn(host, guided(host, miniature, **dials, rescale=1.0), noise, steps=1)
    person = drawn(host, guided(host, miniature, identity=strong, guidance="plain"), noise, cfg=1.0, steps=1)
    torch.testing.assert_close(full.std(dim=(1, 2, 3)), person.std(dim=(1, 2, 3)), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(full, drawn(host, guided(host, miniature, **dials), noise, steps=1), atol=1e-2)


REFUSED = [
    ({}, "neither an identity nor a LoRA"),
    ({"weights": "1, 1, 1, 1", "guidance": "weights"}, "sum to 4, expected 1"),
    ({"weights": "a lot", "guidance": "weights"}, "weights 'a lot' are not numbers"),
    ({"schedule": "0-0.4:1, 0.5-1:0"}, r"noise bands have a gap at \[0.4, 0.5\)"),
    ({"schedule": "0-0.6:1, 0.5-1:0"}, r"noise bands overlap at \[0.5, 0.6\)"),
    ({"guidance": "plain", "subject_scale": 2.0}, "guidance 'plain' has no dials, so subject_scale does nothing"),
    ({"guidance": "reference-null"}, "there is none; predict one from a plain grey picture"),
    ({"start_percent": 0.5, "end_percent": 0.5}, "the start must come before the end"),
]


@pytest.mark.parametrize(("inputs", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_settings_that_cannot_be_are_one_sentence(
    host: Host, miniature: Any, identity: Any, inputs: dict[str, Any], words: str
) -> None:
    inputs = inputs and {"identity": identity} | inputs
    with pytest.raises(host.core("errors").ConfigError, match=words):
        guided(host, miniature, **inputs)


def test_foreign_adapters_are_one_sentence(host: Host, miniature: Any, identity: Any, tmp_path: Path) -> None:
    errors, container = host.core("errors"), host.core("formats.container")
    like = host.core("pipelines.polishing.trainable_adapters")
    foreign = like.without_effect(host.core("bases").get_base("sd15"), [None], ("attention", 5, 7))
    with pytest.raises(errors.BaseMismatchError, match="made for 'sd15', but the base is 'miniature'"):
        guided(host, miniature, identity=foreign)
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    container.write_tensors(folder / "loha.safetensors", {}, {"lora_unet_x.hada_w1_a": torch.zeros(2, 2)})
    with pytest.raises(errors.FileFormatError, match="only plain LoRA is read"):
        guided(host, miniature, lora="loha.safetensors")
    pair = {
        "lora_unet_nowhere.lora_down.weight": torch.zeros(2, 2),
        "lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2),
    }
    container.write_tensors(folder / "other.safetensors", {}, pair)
    with pytest.raises(errors.BaseMismatchError, match=r"1 of its 1 layers, .* are none of the miniature"):
        guided(host, miniature, lora="other.safetensors")
    with pytest.raises(errors.ConfigError, match="given both an identity and a LoRA"):
        guided(host, miniature, identity=identity, lora="other.safetensors")


def test_masks_and_prompts_that_do_not_fit(host: Host, miniature: Any, identity: Any, noise: Tensor) -> None:
    error, side = host.core("errors").ConfigError, 8 * noise.shape[-1]
    whole = torch.ones(1, side, side)
    people = {"identity_1": identity, "identity_2": identity, "mask_1": whole}
    with pytest.raises(error, match="identity_2 is connected and mask_2 is not"):
        guided(host, miniature, **people, mask_2=None)
    with pytest.raises(error, match="mask_2 holds 3 masks"):
        guided(host, miniature, **people, mask_2=whole.repeat(3, 1, 1))
    made = guided(host, miniature, **people, mask_2=whole)
    with pytest.raises(error, match="the 2 masks overlap"):
        drawn(host, made, noise)
    with pytest.raises(error, match=f"mask 2 of 2 is {side} wide and {2 * side} high, but the pictures are"):
        drawn(host, guided(host, miniature, **people, mask_2=torch.zeros(1, 2 * side, side)), noise)
    one = guided(host, miniature, identity=identity)
    with pytest.raises(error, match="worded for 1 people, but the MODEL has 2"):
        drawn(host, (made[0], one[1], one[2]), noise)
    with pytest.raises(error, match="already has a guidance"):
        guided(host, (one[0], miniature[1]), identity=identity)
