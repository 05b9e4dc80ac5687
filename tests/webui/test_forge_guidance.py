"""Hybrid guidance in Forge: its patcher and sampler as a fake that behaves as they do."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperdream_core.bases import get_base

from .conftest import FakeUNet
from .test_guidance import PICTURES, T, of_miniature, texts


class FakePatcher:
    """Forge's patcher of the UNet: options that a clone copies deeply."""

    def __init__(self, unet: Any, options: dict[str, Any] | None = None) -> None:
        self.model = SimpleNamespace(diffusion_model=unet, predictor=SimpleNamespace(timestep=lambda sigma: sigma))
        self.model_options = options or {}

    def clone(self) -> FakePatcher:
        return FakePatcher(self.model.diffusion_model, deepcopy(self.model_options))

    def add_conditioning_modifier(self, modifier: Any) -> None:
        self.model_options = {**self.model_options, "conditioning_modifiers": [modifier]}

    def set_model_unet_function_wrapper(self, wrapper: Any) -> None:
        self.model_options = {**self.model_options, "model_function_wrapper": wrapper}

    def apply_model(self, x: Tensor, t: Tensor, c_crossattn: Tensor, transformer_options: Any, **more: Any) -> Tensor:
        """The sample, and what the control of each row adds."""
        assert len(transformer_options["cond_mark"]) == len(x)
        control = more["control"]["middle"][0][:, :, None, None] if "control" in more else 0.0
        output: Tensor = self.model.diffusion_model(x, t, context=c_crossattn) + control
        return output

    def sampled(self, x: Tensor, conds: list[Tensor], null: Tensor, scale: float, in_one: bool) -> Tensor:
        """A step as the host takes it, the negative prompt first."""

        def compiled(text: Tensor) -> dict[str, Any]:
            return {"model_conds": {"c_crossattn": SimpleNamespace(cond=text)}}

        state: tuple[Any, ...] = (self.model, x, T, [compiled(null)], [compiled(one) for one in conds], scale, {}, 0)
        for modifier in self.model_options.get("conditioning_modifiers", []):
            state = modifier(*state)
        scale = state[5]
        texts = {1: null, 0: conds[0]}
        outputs = {}
        for chunks in [[1, 0]] if in_one else [[0], [1]]:
            control = torch.cat([torch.full((len(x), 1), float(10 * chunk)) for chunk in chunks])
            c = {
                "c_crossattn": torch.cat([texts[chunk] for chunk in chunks]),
                "control": {"middle": [control]},
                "transformer_options": {"cond_or_uncond": chunks, "cond_mark": torch.zeros(len(chunks) * len(x))},
            }
            rows, times = x.repeat(len(chunks), 1, 1, 1), T.repeat(len(chunks) * len(x))
            wrapper = self.model_options.get("model_function_wrapper")
            asked = {"input": rows, "timestep": times, "c": c, "cond_or_uncond": chunks}
            found = wrapper(self.apply_model, asked) if wrapper else self.apply_model(rows, times, **c)
            outputs |= dict(zip(chunks, found.chunk(len(chunks)), strict=True))
        return outputs[1] + (outputs[0] - outputs[1]) * scale


@pytest.fixture
def forge(a1111: SimpleNamespace) -> SimpleNamespace:
    """A fake of Forge about to sample."""
    torch.manual_seed(0)
    unet = FakeUNet("miniature").requires_grad_(False)
    a1111.prompt_parser.reconstruct_multicond_batch = lambda text, step: ([], text)
    comments: list[str] = []
    objects = SimpleNamespace(unet=FakePatcher(unet))
    sampler = SimpleNamespace(model_wrap_cfg=SimpleNamespace(step=0))
    model = SimpleNamespace(forge_objects=objects)
    p = SimpleNamespace(sd_model=model, sampler=sampler, comment=comments.append)
    x = torch.randn(PICTURES, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    x = x[:, : get_base("miniature").latent_channels]
    return SimpleNamespace(p=p, unet=unet, x=x, objects=objects, comments=comments)


@pytest.mark.parametrize("in_one", [True, False])
def test_in_forge_a_step_is_the_weighted_sum_and_each_part_has_its_kinds_control(
    forge: SimpleNamespace, in_one: bool
) -> None:
    from hyperdream_webui.guidance import forge as guidance_forge

    from hyperdream_core.models.adapted_linear import live

    about = of_miniature(base_scale=2.0, subject_scale=4.0)
    person, base, null = texts(1.0, 0.7, 0.2)
    times = T.repeat(PICTURES)
    with live(forge.unet, about.guidance.subjects[0].unet_pairs(0.5)):
        with_person = forge.unet(forge.x, times, context=person)
    of_base, of_null = forge.unet(forge.x, times, context=base), forge.unet(forge.x, times, context=null) + 10.0
    expected = of_null + 2.0 * (of_base - of_null) + 4.0 * (with_person - of_base)
    guidance_forge.start(forge.p, about, base)
    # Another extension clones the patcher after us.
    patcher = forge.objects.unet.clone()
    found = patcher.sampled(forge.x, [person], null, 7.0, in_one)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_in_forge_joined_prompts_are_left_alone_and_the_hosts_patcher_stays(forge: SimpleNamespace) -> None:
    from hyperdream_webui.guidance import forge as guidance_forge

    plain = forge.objects.unet
    person, base, null = texts(1.0, 0.7, 0.2)
    guidance_forge.start(forge.p, of_miniature(), base)
    found = forge.objects.unet.sampled(forge.x, [person, base], null, 3.0, True)
    assert torch.equal(found, plain.sampled(forge.x, [person, base], null, 3.0, True))
    assert "joined by AND" in forge.comments[0] and not plain.model_options


def test_in_forge_another_extensions_wrapper_runs_within_ours(forge: SimpleNamespace) -> None:
    from hyperdream_webui.guidance import forge as guidance_forge

    seen: list[list[int]] = []

    def wrapper(apply_model: Any, asked: dict[str, Any]) -> Tensor:
        seen.append(asked["cond_or_uncond"])
        output: Tensor = apply_model(asked["input"], asked["timestep"], **asked["c"])
        return output

    forge.objects.unet.set_model_unet_function_wrapper(wrapper)
    person, base, null = texts(1.0, 0.7, 0.2)
    guidance_forge.start(forge.p, of_miniature(subject_scale=5.0), base)
    forge.objects.unet.sampled(forge.x, [person], null, 3.0, True)
    assert [sorted(chunks) for chunks in seen] == [[0, 0, 1]]
