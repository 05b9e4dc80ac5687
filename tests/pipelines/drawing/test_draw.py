from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.identity import Identity
from hyperdream_core.models.adapted_linear import merged
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw

PROMPTS = ["a sks face", "a pet, sad", "a sks face, comic"]
CONFIG = DrawConfig(steps=2, size=32, batch=3)


@pytest.fixture
def identity(fresh_identity: Callable[..., Identity]) -> Identity:
    return fresh_identity("miniature", scale=0.3)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_ddim_draws_what_diffusers_own_pipeline_draws(base: DiffusersBase, guidance_scale: float) -> None:
    scheduler = DDIMScheduler.from_config(
        {**base.scheduler_config, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    )
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        tokenizer=base.tokenizers[0],
        unet=base.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(32, 4, 4, generator=torch.Generator().manual_seed(5))
    expected = pipeline(
        PROMPTS[0], num_inference_steps=4, guidance_scale=guidance_scale, latents=noise[None], output_type="pt"
    ).images
    config = DrawConfig(steps=4, size=32, seed=5, sampler="ddim", guidance_scale=guidance_scale)
    torch.testing.assert_close(draw(base, PROMPTS[:1], config=config), expected, rtol=1e-4, atol=1e-4)


def test_strength_zero_is_the_base_bit_for_bit(base: DiffusersBase, identity: Identity) -> None:
    zero = DrawConfig(steps=2, size=32, strength=0.0)
    assert torch.equal(draw(base, PROMPTS, identity, zero), draw(base, PROMPTS, None, zero))
    assert not torch.equal(draw(base, PROMPTS, identity, CONFIG), draw(base, PROMPTS, None, CONFIG))


def test_an_identity_draws_what_merged_weights_draw(base: DiffusersBase, identity: Identity) -> None:
    config = DrawConfig(steps=2, size=32, strength=0.6, guidance="plain")
    with merged(base.unet, identity.expand(), 0.6):
        expected = draw(base, PROMPTS[:2], None, config)
    torch.testing.assert_close(draw(base, PROMPTS[:2], identity, config), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("guidance", ["plain", "base-null"])
def test_pictures_do_not_depend_on_their_company(base: DiffusersBase, identity: Identity, guidance: str) -> None:
    people = [identity, identity.scaled(-1.0), identity.scaled(0.2)]
    expanded = [person.expand() for person in people]
    pairs = {
        name: LoraPair(*(torch.stack([getattr(one[name], side) for one in expanded]) for side in ("down", "up")))
        for name in expanded[0]
    }
    options = {"steps": 2, "size": 32, "guidance": guidance}
    together = draw(base, PROMPTS, pairs, DrawConfig(batch=3, **options))  # type: ignore[arg-type]
    split = draw(base, PROMPTS, pairs, DrawConfig(batch=2, **options))  # type: ignore[arg-type]
    torch.testing.assert_close(together, split, rtol=1e-3, atol=1e-4)
    for index, person in enumerate(people):
        alone = DrawConfig(seed=index, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(
            together[index], draw(base, [PROMPTS[index]], person, alone)[0], rtol=1e-3, atol=1e-4
        )


def test_guidance_away_from_the_base_uses_its_null_branch(base: DiffusersBase, identity: Identity) -> None:
    def drawn(scale: float) -> Tensor:
        config = DrawConfig(steps=1, size=32, sampler="ddim", guidance_scale=scale, guidance="base-null")
        return draw(base, PROMPTS[:1], identity, config)

    # At scale 0 only the branch that guidance leads away from is left: the base with an empty prompt.
    nobody = DrawConfig(steps=1, size=32, sampler="ddim", guidance_scale=1.0)
    torch.testing.assert_close(drawn(0.0), draw(base, [""], None, nobody), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drawn(1.0), draw(base, PROMPTS[:1], identity, nobody), rtol=1e-4, atol=1e-5)


def test_seeds_decide_the_noise_and_nothing_else_does(base: DiffusersBase) -> None:
    same = draw(base, [PROMPTS[0]] * 3, config=CONFIG, seeds=[4, 9, 4])
    torch.testing.assert_close(same[0], same[2])
    assert not torch.allclose(same[0], same[1])
    torch.manual_seed(1)
    first = draw(base, PROMPTS, config=CONFIG)
    torch.manual_seed(2)
    assert torch.equal(first, draw(base, PROMPTS, config=CONFIG))


def test_text_encoder_layers_of_an_identity_act_on_the_prompt(
    base: DiffusersBase, fresh_identity: Callable[..., Identity]
) -> None:
    whole = fresh_identity("miniature", "attention+geglu+text", scale=0.3).expand()
    unet_only = {name: pair for name, pair in whole.items() if not name.startswith("text_encoder")}
    assert not torch.allclose(
        draw(base, PROMPTS[:1], whole, CONFIG), draw(base, PROMPTS[:1], unet_only, CONFIG), atol=1e-3
    )
    stacked = {name: LoraPair(pair.down.repeat(2, 1, 1), pair.up.repeat(2, 1, 1)) for name, pair in whole.items()}
    torch.testing.assert_close(
        draw(base, PROMPTS[:2], stacked, CONFIG), draw(base, PROMPTS[:2], whole, CONFIG), rtol=1e-3, atol=1e-4
    )


def test_progress_counts_all_batches(base: DiffusersBase) -> None:
    seen: list[tuple[int, int]] = []
    config = DrawConfig(steps=2, size=32, batch=2)
    draw(base, PROMPTS, None, config, lambda step, total: seen.append((step, total)))
    assert seen == [(step, 4) for step in range(5)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"guidance_scale": -1.0}, "guidance_scale must be 0 or more"),
        ({"size": 30}, "size must be a multiple of 8 px, got 30"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DrawConfig(**change)  # type: ignore[arg-type]


def test_adapters_for_another_base_or_number_are_refused(
    base: DiffusersBase, fresh_identity: Callable[..., Identity]
) -> None:
    with pytest.raises(BaseMismatchError, match="made for 'sd15', but the base is 'miniature'"):
        draw(base, PROMPTS, fresh_identity("sd15"), CONFIG)
    pairs = {
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": LoraPair(
            torch.zeros(2, 1, 128), torch.zeros(2, 128, 1)
        )
    }
    with pytest.raises(ConfigError, match="adapters for 2 pictures, but there are 3 prompts"):
        draw(base, PROMPTS, pairs, CONFIG)
    with pytest.raises(ConfigError, match="1 seeds for 3 prompts"):
        draw(base, PROMPTS, None, CONFIG, seeds=[1])
