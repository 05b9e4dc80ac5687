"""Apply Identity: merged and live, ranges, parts, and everything as it was without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from .conftest import Host

DIALS = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mode": "automatic",
         "down": 1.0, "middle": 1.0, "up": 1.0, "text": 1.0}  # fmt: skip


def output(model: Any, sigma: float = 1.0) -> Tensor:
    """What the UNet says of a fixed input."""
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 32, 8, 8, generator=generator)
    context = torch.randn(2, 77, 64, generator=generator)
    with torch.inference_mode():
        result: Tensor = model.run(latents, torch.tensor([700, 200]), context, sigma)
        return result


def applied(host: Host, miniature: Any, identity: Any, **dials: Any) -> Any:
    node = "ApplyIdentityAdvanced" if set(dials) - {"strength"} else "ApplyIdentity"
    settings = DIALS | dials if node.endswith("Advanced") else {"strength": 1.0} | dials
    return host.run(node, model=miniature[0], clip=miniature[1], identity=identity, **settings)[0]


def test_merged_equals_live(host: Host, miniature: Any, identity: Any) -> None:
    merged, live = (output(applied(host, miniature, identity, mode=mode)) for mode in ("merged", "live"))
    base = output(miniature[0])
    assert float((merged - base).abs().mean()) > 0.005
    torch.testing.assert_close(merged, live, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(output(applied(host, miniature, identity)), merged, atol=0, rtol=0)


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_strength_zero_and_the_model_that_came_in_are_the_base_bit_for_bit(
    host: Host, miniature: Any, identity: Any, mode: str
) -> None:
    base = output(miniature[0])
    personalised = applied(host, miniature, identity, mode=mode)
    assert not torch.equal(output(personalised), base)
    assert torch.equal(output(miniature[0]), base)
    assert torch.equal(output(applied(host, miniature, identity, mode=mode, strength=0.0)), base)
    assert personalised is not miniature[0]
    assert not [name for name, module in miniature[0].model.named_modules() if "forward" in module.__dict__]


def test_two_identities_add_up_in_either_mode(host: Host, miniature: Any, identity: Any) -> None:
    twice = {}
    for mode in ("merged", "live"):
        first = applied(host, miniature, identity, mode=mode, strength=0.5)
        twice[mode] = output(applied(host, (first, miniature[1]), identity, mode=mode, strength=0.5))
        torch.testing.assert_close(
            twice[mode], output(applied(host, miniature, identity, mode=mode)), atol=2e-5, rtol=1e-4
        )
    torch.testing.assert_close(twice["merged"], twice["live"], atol=2e-5, rtol=1e-4)


def test_it_acts_within_its_range_only(host: Host, miniature: Any, identity: Any) -> None:
    model = applied(host, miniature, identity, start_percent=0.25, end_percent=0.75)
    to_sigma = miniature[0].get_model_object("model_sampling").percent_to_sigma
    base, whole = output(miniature[0]), output(applied(host, miniature, identity, mode="live"))
    for percent, wanted in ((0.1, base), (0.3, whole), (0.7, whole), (0.9, base)):
        assert torch.equal(output(model, to_sigma(percent)), wanted), percent


def test_a_part_of_strength_zero_is_left_alone(host: Host, miniature: Any, identity: Any) -> None:
    assert torch.equal(output(applied(host, miniature, identity, down=0.0, middle=0.0, up=0.0)), output(miniature[0]))
    one = applied(host, miniature, identity, down=0.0, middle=0.0, mode="merged")
    assert one.patches and all(".output_blocks." in key for key in one.patches)


def test_settings_that_contradict_each_other_are_refused(host: Host, miniature: Any, identity: Any) -> None:
    error = host.core("errors").ConfigError
    with pytest.raises(error, match="a start or an end cannot be merged"):
        applied(host, miniature, identity, mode="merged", end_percent=0.5)
    with pytest.raises(error, match="the start must come before the end"):
        applied(host, miniature, identity, start_percent=0.5, end_percent=0.5)


def test_the_wrong_family_is_one_sentence(host: Host, miniature: Any, identity: Any) -> None:
    core = host.core("pipelines.polishing.trainable_adapters")
    foreign = core.without_effect(host.core("bases").get_base("sd15"), [None], ("attention", 5, 7))
    with pytest.raises(host.core("errors").BaseMismatchError, match="made for 'sd15', but the model is 'miniature'"):
        applied(host, miniature, foreign)


def test_text_layers_reach_the_text_encoder(host: Host, miniature: Any, identity: Any) -> None:
    lowrank, adapters = host.core("ops.lowrank"), host.core("pipelines.polishing.trainable_adapters")
    family = host.core("bases").get_base("miniature")
    like = adapters.without_effect(family, [None], ("attention+geglu+text", 5, 7))
    generator = torch.Generator().manual_seed(3)
    pairs = {
        name: lowrank.LoraPair(pair.down, 0.1 * torch.randn(pair.up.shape, generator=generator))
        for name, pair in like.expand().items()
        if name.startswith("text_encoder")
    }
    pairs = {n: lowrank.LoraPair(torch.randn(p.down.shape, generator=generator), p.up) for n, p in pairs.items()}
    clip = host.module("host.patches").clip_with_patches(miniature[1], pairs, family, 1.0)
    with torch.inference_mode():
        changed, before = (one.encode_from_tokens(one.tokenize("a sks face"))[0] for one in (clip, miniature[1]))
        assert float((changed - before).abs().mean()) > 0.01
        assert torch.equal(miniature[1].encode_from_tokens(miniature[1].tokenize("a sks face"))[0], before)
    with pytest.raises(
        host.core("errors").BaseMismatchError, match="8 of 8 layers of the identity are not in this model"
    ):
        some = dict(list(identity.expand().items())[:8])
        host.module("host.patches").with_patches(miniature[1].patcher, some, family, 1.0)


def test_a_prompt_gets_the_word_that_stands_for_the_person(host: Host, miniature: Any, identity: Any) -> None:
    conditioning, text = host.run("EncodePrompt", clip=miniature[1], identity=identity, text="a [V] face, at night")
    assert text == "a sks face, at night"
    with torch.inference_mode():
        wanted = miniature[1].encode_from_tokens(miniature[1].tokenize(text))[0]
    assert torch.equal(conditioning[0][0], wanted)
    node = host.module("").EncodePrompt
    with torch.inference_mode():
        told = node.execute(clip=miniature[1], identity=identity, text="at night")
    assert told.args[1] == "a sks face, at night"
    assert told.ui.as_dict()["text"][0].startswith("The text named nobody, so it was changed to: a sks face, at night")


def in_bands(host: Host, identity: Any, scale: float = -1.0) -> Any:
    """The identity below t = 0.5, and `scale` times it from there on."""
    parts = {0: identity, 1: identity.scaled(scale)}
    entries = {f"{name}.band{k}": c for k, one in parts.items() for name, c in one.coefficients.items()}
    return replace(identity, bands=((0.0, 0.5), (0.5, 1.0)), coefficients=entries)


@pytest.mark.parametrize("dials", [{}, {"mode": "automatic", "middle": 1.0}])
def test_an_identity_over_noise_bands_switches_live_with_the_noise(
    host: Host, miniature: Any, identity: Any, dials: dict[str, Any]
) -> None:
    model = applied(host, miniature, in_bands(host, identity), **dials)
    assert not model.patches
    to_sigma = miniature[0].get_model_object("model_sampling").percent_to_sigma
    for percent, scale in ((0.2, -1.0), (0.45, -1.0), (0.55, 1.0), (0.9, 1.0)):
        part = applied(host, miniature, identity.scaled(scale), mode="live")
        assert torch.equal(output(model, to_sigma(percent)), output(part, to_sigma(percent))), percent


def test_a_noise_level_that_no_band_owns_is_the_base(host: Host, miniature: Any, identity: Any) -> None:
    both = in_bands(host, identity)
    low = {name: c for name, c in both.coefficients.items() if name.endswith(".band0")}
    model = applied(host, miniature, replace(both, bands=((0.0, 0.5),), coefficients=low))
    to_sigma = miniature[0].get_model_object("model_sampling").percent_to_sigma
    assert torch.equal(output(model, to_sigma(0.2)), output(miniature[0]))
    assert not torch.equal(output(model, to_sigma(0.8)), output(miniature[0]))


def test_bands_are_not_merged_nor_given_to_a_text_encoder(host: Host, miniature: Any, identity: Any) -> None:
    error = host.core("errors").ConfigError
    with pytest.raises(error, match=r"noise bands \[0, 0.5\) and \[0.5, 1\) and cannot be merged .* live or automatic"):
        applied(host, miniature, in_bands(host, identity), mode="merged")
    adapters, family = host.core("pipelines.polishing.trainable_adapters"), host.core("bases").get_base("miniature")
    wide = adapters.without_effect(family, [None], ("attention+geglu+text", 5, 7))
    with pytest.raises(error, match="changes the text encoder too, which here runs once for all noise levels"):
        applied(host, miniature, in_bands(host, wide))
