"""Hybrid guidance: what both hosts share, and each one's part on a fake that behaves as the host does."""

from __future__ import annotations

import re
from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hyperdream_webui.guidance import axes
from hyperdream_webui.guidance.guided import Dials, Guided, guided, of_one_length, pasted
from hyperdream_webui.guidance.refusal import GuidanceError
from hyperdream_webui.guidance.script import guidable
from torch import Tensor

from hyperdream_core.errors import BaseMismatchError, ConfigError

from .conftest import FakeModel, FakeUNet, make_identity

NAME = "mara-3f2a91.safetensors"
PICTURES = 2
OWN_NAME = object()
"""stands for the name of the identity that is there"""
T = torch.tensor([500.0])


def of_miniature(**dials: Any) -> Guided:
    torch.manual_seed(0)
    return guided(Dials(identity=NAME, **dials), make_identity("miniature", scale=0.5), FakeUNet("miniature"))


@pytest.mark.parametrize(
    ("prompt", "worded"),
    [
        ("a [V] face, smiling", "a sks face, smiling"),
        ("a sks face <lora:mara-3f2a91:1>, smiling", "a sks face smiling"),
        ("a face <lora:mara-3f2a91-lora:0.5>", "a sks face"),
        ("smiling <lora:my face:1>", "a sks face, smiling <lora:my face:1>"),
        ("a sks face <lora:mara-3f2a92:1>", "a sks face <lora:mara-3f2a92:1>"),
    ],
)
def test_a_prompt_names_the_person_once_and_keeps_other_networks(prompt: str, worded: str) -> None:
    assert of_miniature().worded(prompt) == worded


def test_the_base_is_asked_for_anybody() -> None:
    assert of_miniature().of_base("a sks face, smiling") == "a face, smiling"


def test_the_infotext_comes_back_as_it_was_and_leaves_out_what_was_left_alone() -> None:
    dials = Dials(identity=NAME, guidance="mix", subject_scale=0.5, schedule="default")
    fields = {name: str(value) for name, value in dials.infotext().items()}
    assert pasted(fields) == dials and len(fields) == 4
    assert pasted({"Steps": "3"}) is None


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    with pytest.raises(BaseMismatchError, match="Stable Diffusion XL, but guidance"), torch.device("meta"):
        guided(Dials(), make_identity("sd15"), FakeUNet("sdxl"))
    with pytest.raises(BaseMismatchError, match="made for 'sd15'"):
        guided(Dials(), make_identity("sd15"), FakeUNet("miniature"))
    with pytest.raises(ConfigError, match="has no dials"):
        guided(Dials(guidance="plain", subject_scale=2.0), make_identity("miniature"), FakeUNet("miniature"))


def test_texts_of_several_lengths_are_repeated_to_one() -> None:
    short, long = torch.rand(1, 2, 4), torch.rand(1, 3, 4)
    first, second = of_one_length([short, long])
    assert first.shape == second.shape == (1, 6, 4)
    query = torch.rand(1, 5, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attention(query, first, first), attention(query, short, short))


class FakeDenoiser:
    """A step of Automatic1111: rows of prompts first and of negative prompts last, in one call or in several."""

    def __init__(self, model: FakeModel, at_once: int) -> None:
        self.model, self.at_once, self.step, self.callbacks = model, at_once, 0, []
        self.inner_model = SimpleNamespace(sigma_to_t=lambda sigma: sigma)
        self.leaves_null_out = False
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor, text: Tensor, null: Tensor, scale: float) -> Tensor:
        params = SimpleNamespace(
            x=torch.cat([x, x]),
            sigma=torch.cat([sigma, sigma]),
            image_cond=torch.zeros(2 * len(x), 5, 1, 1),
            text_cond=text,
            text_uncond=null,
            denoiser=self,
        )
        for before, _ in self.callbacks:
            before(params)
        pictures = len(x)
        rows, times = params.x, params.sigma
        texts = torch.cat([params.text_cond, params.text_uncond])
        if self.leaves_null_out:
            rows, times, texts = rows[:-pictures], times[:-pictures], params.text_cond
        at_once, found = self.at_once or len(rows), []
        for first in range(0, len(rows), at_once):
            part = slice(first, first + at_once)
            self.calls += 1
            found.append(self.model.apply_model(rows[part], times[part], {"c_crossattn": [texts[part]]}))
        out = torch.cat(found)
        if self.leaves_null_out:
            out, scale = torch.cat([out, out[:pictures]]), 1.0
        # The host does not read the object back: only what is written in place counts.
        for _, after in self.callbacks:
            after(SimpleNamespace(x=out))
        uncond = out[-pictures:]
        return uncond + (out[:pictures] - uncond) * scale


@pytest.fixture
def host(a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake of Automatic1111 with a model, its denoiser and its callbacks."""
    torch.manual_seed(0)
    a1111.shared.sd_model = FakeModel("miniature").requires_grad_(False)
    denoiser = FakeDenoiser(a1111.shared.sd_model, 0)
    before: list[Any] = []

    def add(callback: Any) -> None:
        denoiser.callbacks.append((before.pop(), callback))

    def remove(callback: Any) -> None:
        denoiser.callbacks[:] = [pair for pair in denoiser.callbacks if callback not in pair]

    monkeypatch.setattr(a1111.script_callbacks, "on_cfg_denoiser", before.append, raising=False)
    monkeypatch.setattr(a1111.script_callbacks, "on_cfg_denoised", add, raising=False)
    monkeypatch.setattr(a1111.script_callbacks, "remove_callbacks_for_function", remove, raising=False)
    a1111.prompt_parser.reconstruct_multicond_batch = lambda text, step: ([], text)
    comments: list[str] = []
    p = SimpleNamespace(sampler=SimpleNamespace(model_wrap_cfg=denoiser), cfg_scale=3.0, comment=comments.append)
    return SimpleNamespace(model=a1111.shared.sd_model, denoiser=denoiser, p=p, comments=comments)


def texts(*lengths: float) -> list[Tensor]:
    return [torch.full((PICTURES, 77, 4), length) for length in lengths]


def drawn(host: SimpleNamespace, about: Guided | None, person: Tensor, base: Tensor, null: Tensor) -> Tensor:
    """A step of the fake's, guided or not."""
    from hyperdream_webui.guidance import a1111 as guidance_a1111

    x = torch.randn(PICTURES, host.model.channels, 8, 8, generator=torch.Generator().manual_seed(1))
    run = None if about is None else guidance_a1111.start(host.p, about, base)
    try:
        return host.denoiser(x, T.repeat(PICTURES), person, null, host.p.cfg_scale)
    finally:
        if run is not None:
            run.stop()


@pytest.mark.parametrize("at_once", [0, 2, 3])
def test_a_step_is_the_weighted_sum_of_its_predictions(host: SimpleNamespace, at_once: int) -> None:
    from hyperdream_core.models.adapted_linear import live

    about = of_miniature(base_scale=2.0, subject_scale=4.0)
    person, base, null = texts(1.0, 0.7, 0.2)
    x = torch.randn(PICTURES, host.model.channels, 8, 8, generator=torch.Generator().manual_seed(1))
    unet, times = host.model.model.diffusion_model, T.repeat(PICTURES)
    with live(unet, about.guidance.subjects[0].unet_pairs(0.5)):
        with_person = unet(x, times, context=person)
    of_base, of_null = unet(x, times, context=base), unet(x, times, context=null)
    expected = of_null + 2.0 * (of_base - of_null) + 4.0 * (with_person - of_base)
    host.denoiser.at_once = at_once
    torch.testing.assert_close(drawn(host, about, person, base, null), expected, rtol=1e-4, atol=1e-4)
    assert (with_person - of_base).abs().max() > 0.01


def test_without_a_subject_the_base_is_drawn_bit_for_bit(host: SimpleNamespace) -> None:
    person, base, null = texts(1.0, 0.7, 0.2)
    alone = drawn(host, None, base, base, null)
    assert torch.equal(drawn(host, of_miniature(subject_scale=0.0), person, base, null), alone)


def test_where_the_host_leaves_the_negative_prompt_out_the_person_is_drawn(host: SimpleNamespace) -> None:
    from hyperdream_core.models.adapted_linear import live

    person, base, null = texts(1.0, 0.7, 0.2)
    about = of_miniature()
    host.denoiser.leaves_null_out = True
    found = drawn(host, about, person, base, null)
    with live(host.model.model.diffusion_model, about.guidance.subjects[0].unet_pairs(0.5)):
        torch.testing.assert_close(found, drawn(host, None, person, base, null))


def test_joined_prompts_are_left_alone_and_said_so(host: SimpleNamespace) -> None:
    person, base, null = texts(1.0, 0.7, 0.2)
    x = torch.zeros(PICTURES, host.model.channels, 8, 8)
    from hyperdream_webui.guidance import a1111 as guidance_a1111

    run = guidance_a1111.start(host.p, of_miniature(), base)
    both = torch.cat([person, base])
    params = SimpleNamespace(x=x.repeat(3, 1, 1, 1), text_cond=both, text_uncond=null, denoiser=host.denoiser)
    run.before_unet(params)
    run.stop()
    assert len(params.x) == 3 * PICTURES and "joined by AND" in host.comments[0]


def test_nothing_stays_hooked(host: SimpleNamespace) -> None:
    person, base, null = texts(1.0, 0.7, 0.2)
    drawn(host, of_miniature(), person, base, null)
    unet = host.model.model.diffusion_model
    assert not host.denoiser.callbacks and not unet._forward_hooks and not unet._forward_pre_hooks
    assert not any("forward" in vars(module) for module in unet.modules())


@pytest.fixture
def accordion(host: SimpleNamespace, a1111: SimpleNamespace, tmp_path: Any) -> SimpleNamespace:
    """A script as the host makes one, with an identity in its folder, and a job."""
    from hyperdream_webui.guidance.script import GuidanceAccordion
    from hyperdream_webui.lora_folder import LoraFolder

    script = GuidanceAccordion()
    script.loras = LoraFolder(tmp_path / "lora", tmp_path / "own")
    name = script.loras.put(make_identity("miniature", scale=0.5), "mara")
    a1111.prompt_parser.get_multicond_learned_conditioning = lambda model, prompts, *steps: prompts
    job = SimpleNamespace(**vars(host.p), sd_model=host.model, width=64, height=64, steps=3, firstpass_steps=3)
    job.all_prompts, job.prompts, job.extra_generation_params = ["a [V] face"], ["a sks face"], {}
    return SimpleNamespace(script=script, name=name, job=job)


def test_the_accordion_guides_a_job_and_writes_it_into_the_infotext(
    accordion: SimpleNamespace, host: SimpleNamespace
) -> None:
    script, job = accordion.script, accordion.job
    script.process(job, True, accordion.name, "hybrid", -1.0, 5.0, "", 1.0)
    assert job.all_prompts == ["a sks face"] and job.main_prompt == "a sks face"
    assert job.extra_generation_params["HyperDream identity"] == accordion.name
    script.process_before_every_sampling(job, uc=object())
    assert host.denoiser.callbacks
    script.postprocess(job, None)
    assert not host.denoiser.callbacks


@pytest.fixture
def plot(a1111: SimpleNamespace) -> Any:
    """The host's plot, as a script that it has run."""

    class AxisOption:
        def __init__(self, label: str, type: Any, apply: Any, confirm: Any = None, choices: Any = None) -> None:
            self.label, self.type, self.apply, self.confirm, self.choices = label, type, apply, confirm, choices

    module = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Nothing", str, None)])
    script_class = SimpleNamespace(__module__="xyz_grid.py")
    a1111.scripts.scripts_data = [SimpleNamespace(script_class=script_class, module=module)]
    return module


def test_off_touches_nothing_and_clears_what_a_broken_job_has_left(
    accordion: SimpleNamespace, host: SimpleNamespace
) -> None:
    script, job = accordion.script, accordion.job
    script.process(job, True, accordion.name, "hybrid", -1.0, 5.0, "", 1.0)
    script.process_before_every_sampling(job, uc=object())
    job.all_prompts, job.extra_generation_params = ["a [V] face"], {}
    script.process(job, False, accordion.name, "hybrid", -1.0, 5.0, "", 1.0)
    script.process_before_every_sampling(job, uc=object())
    assert job.all_prompts == ["a [V] face"] and not job.extra_generation_params and not host.denoiser.callbacks


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("none", "hybrid", -1.0, -1.0, "", 1.0), "no identity is chosen"),
        (("", "hybrid", -1.0, -1.0, "", 1.0), "no identity is chosen"),
        (("gone.safetensors", "hybrid", -1.0, -1.0, "", 1.0), "there is no identity 'gone.safetensors'"),
        (("../../mara", "hybrid", -1.0, -1.0, "", 1.0), "there is no identity"),
        ((OWN_NAME, "plain", -1.0, 2.0, "", 1.0), "has no dials"),
        ((OWN_NAME, "dance", -1.0, -1.0, "", 1.0), "unknown guidance 'dance'"),
        ((OWN_NAME, "hybrid", -1.0, -1.0, "0-2:x", 1.0), "schedule"),
        ((OWN_NAME, "hybrid", -7.0, -1.0, "", 1.0), "base_scale"),
        ((OWN_NAME, "hybrid", float("nan"), -1.0, "", 1.0), "base_scale"),
        ((OWN_NAME, "hybrid", -1.0, "many", "", 1.0), "are numbers"),
        ((OWN_NAME, "hybrid", -1.0, -1.0, "", None), "are numbers"),
        ((OWN_NAME, "hybrid", -1.0, -1.0, "", float("inf")), "strength of the identity"),
        ((OWN_NAME, "hybrid", -1.0, -1.0, "", 10**400), "are numbers"),
        ((OWN_NAME,), "it takes identity, guidance"),
    ],
)
def test_what_cannot_be_guided_is_an_error_in_the_pictures_place_and_nothing_is_drawn(
    accordion: SimpleNamespace, host: SimpleNamespace, values: tuple[Any, ...], words: str
) -> None:
    script, job = accordion.script, accordion.job
    script.process(job, True, *(accordion.name if value is OWN_NAME else value for value in values))
    with pytest.raises(GuidanceError, match=re.escape(words)) as raised:
        job.init(job.all_prompts, [1], [1])
    # What the API of both hosts answers with.
    assert raised.value.status_code == 422 and raised.value.detail == str(raised.value)
    script.process_before_every_sampling(job, uc=object())
    assert not host.denoiser.callbacks and not job.extra_generation_params


def test_an_identity_of_another_family_and_joined_prompts_are_errors_too(accordion: SimpleNamespace) -> None:
    script, job = accordion.script, accordion.job
    other = script.loras.put(make_identity("sd15"), "lena")
    for name, prompt, words in (
        (other, "a [V] face", "made for 'sd15'"),
        (accordion.name, "a [V] face AND a dog", "joined by AND"),
    ):
        job.all_prompts = [prompt]
        script.process(job, True, name, "hybrid", -1.0, -1.0, "", 1.0)
        with pytest.raises(GuidanceError, match=words):
            job.init()


def test_what_is_seen_only_at_the_sampler_ends_the_job_there(accordion: SimpleNamespace, host: SimpleNamespace) -> None:
    script, job = accordion.script, accordion.job
    script.process(job, True, accordion.name, "hybrid", -1.0, 5.0, "", 1.0)
    script.process_before_every_sampling(job, uc=None)
    for run in (job.sampler.sample, job.sampler.sample_img2img):
        with pytest.raises(GuidanceError, match="CFG scale of 1"):
            run(job, None)
    assert not host.denoiser.callbacks


def test_the_plots_axes_set_dials_and_nobody_is_the_base_alone(accordion: SimpleNamespace, plot: Any) -> None:
    assert axes.register(lambda: guidable(accordion.script.loras)) and axes.register(list)
    by_label = {option.label: option for option in plot.axis_options}
    assert len(by_label) == len(plot.axis_options) == 6
    script, job = accordion.script, accordion.job
    cell = copy(job)
    by_label["[HyperDream] Identity"].apply(cell, accordion.name, [])
    by_label["[HyperDream] Strength of the identity"].apply(cell, 0.5, [])
    script.process(cell, False, "none", "hybrid", -1.0, -1.0, "", 1.0)
    assert cell.extra_generation_params["HyperDream strength"] == 0.5 and cell.all_prompts == ["a sks face"]
    assert not axes.chosen(job), "a cell's values are its own"
    base = copy(job)
    base.extra_generation_params = {}
    by_label["[HyperDream] Identity"].apply(base, "none", [])
    script.process(base, True, accordion.name, "hybrid", -1.0, -1.0, "", 1.0)
    assert base.all_prompts == ["a face"] and not base.extra_generation_params


def test_the_plot_refuses_an_unknown_identity_or_preset_before_it_begins(accordion: SimpleNamespace, plot: Any) -> None:
    accordion.script.loras.put(make_identity("sd15"), "lena")
    axes.register(lambda: guidable(accordion.script.loras))
    identity, guidance = plot.axis_options[1:3]
    assert len(identity.choices()) == 2 and "hybrid" in guidance.choices()
    for option in (identity, guidance):
        option.confirm(None, list(option.choices()))
        with pytest.raises(RuntimeError, match="'gone' is none of"):
            option.confirm(None, ["gone"])


def test_without_the_hosts_plot_there_are_no_axes(a1111: SimpleNamespace) -> None:
    a1111.scripts.scripts_data = []
    assert axes.register(list) is False


def test_a_replaced_unet_is_refused(host: SimpleNamespace, a1111: SimpleNamespace) -> None:
    from hyperdream_webui.guidance import a1111 as guidance_a1111

    a1111.sd_unet.current_unet = object()
    with pytest.raises(ConfigError, match="TensorRT"):
        guidance_a1111.start(host.p, of_miniature(), None)
