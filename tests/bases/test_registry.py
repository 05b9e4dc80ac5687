from __future__ import annotations

import pytest

from hyperdream_core.bases import BASES, detect_family, get_base
from hyperdream_core.bases.keys import to_ldm
from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.ops.lidb import basis_digest

Shapes = dict[str, tuple[int, ...]]


def shapes_of(family: str, dialect: str, prefix: str) -> Shapes:
    base = get_base(family)
    shapes = {
        f"{prefix}{to_ldm(layer.name, base) if dialect == 'ldm' else layer.name}.weight": (
            layer.out_features,
            layer.in_features,
        )
        for layer in base.layers("attention+geglu")
    }
    first = "input_blocks.0.0.weight" if dialect == "ldm" else "conv_in.weight"
    return shapes | {prefix + first: (base.unet.channels[0], base.latent_channels, 3, 3), "first_stage_model.x": (3,)}


@pytest.mark.parametrize("family", list(BASES))
@pytest.mark.parametrize(
    ("dialect", "prefix"),
    [("diffusers", ""), ("diffusers", "unet."), ("ldm", "model.diffusion_model."), ("ldm", "diffusion_model.")],
)
def test_every_family_is_known_by_its_shapes_in_both_layouts(family: str, dialect: str, prefix: str) -> None:
    assert detect_family(shapes_of(family, dialect, prefix)) is get_base(family)


def test_another_width_is_refused_with_what_was_seen() -> None:
    shapes = {
        name: tuple(2 * n for n in shape) if "attn" in name else shape
        for name, shape in shapes_of("miniature", "ldm", "").items()
    }
    words = r"80 attention layers of widths \[192, 256\] reading text tokens of widths \[128\].*none of the known"
    with pytest.raises(BaseMismatchError, match=words):
        detect_family(shapes)


def test_a_unet_with_more_or_less_attention_is_refused() -> None:
    shapes = shapes_of("miniature", "diffusers", "")
    extra = "down_blocks.3.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    with pytest.raises(BaseMismatchError, match="81 attention layers"):
        detect_family(shapes | {extra: (128, 128)})
    shapes.pop("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    with pytest.raises(BaseMismatchError, match="79 attention layers"):
        detect_family(shapes)


def test_something_else_altogether_is_refused() -> None:
    with pytest.raises(BaseMismatchError, match="1 tensors and no attention layer of a Stable Diffusion UNet"):
        detect_family({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)})


def test_an_inpainting_checkpoint_is_refused() -> None:
    shapes = shapes_of("sd15", "ldm", "model.diffusion_model.")
    shapes["model.diffusion_model.input_blocks.0.0.weight"] = (320, 9, 3, 3)
    with pytest.raises(BaseMismatchError, match=r"takes 9 channels, but 4 are expected\. It is an inpainting"):
        detect_family(shapes)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown base family 'flux'; known: sd15, sd2, sdxl, miniature"):
        get_base("flux")


@pytest.mark.parametrize("family", list(BASES))
def test_the_bases_that_identities_stand_on_never_change(family: str) -> None:
    assert basis_digest(family, get_base(family).layers("attention+geglu+text")) == GOLDEN[family]


GOLDEN = {
    "sd15": "7fd0bdd11d7661694be3429104e35a43c4b7be711487a3db5b073fa483a1a519",
    "sd2": "21e236a67efb524bbcb953ff60f9f7470435200b10cb3be35a916bd8970ccb71",
    "sdxl": "ab28e6fe56fd560a4ac53dd0f2646d395d1e3f93adcdb65926502fec58a352b6",
    "miniature": "965e28c11296c0356a173fa9c78aa4fd72d750e92192ab916395629bf666b9f6",
}
