"""Apply Identity: make a checkpoint draw the person."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from comfy_api.latest import io

from ...hyperdream_core.bases import UNET, BaseFamily
from ...hyperdream_core.bases.keys import to_ldm
from ...hyperdream_core.errors import BaseMismatchError, ConfigError
from ...hyperdream_core.identity import Identity
from ...hyperdream_core.ops.bands import WHOLE, Band, said
from ...hyperdream_core.ops.lowrank import LoraPair
from ..dials import check_range, choice, range_dials, strength_dial
from ..host import models, patches, run
from ..wires import IDENTITY
from .live_adapter import LiveAdapter, refuse_banded_text

_PARTS = {"down_blocks": "down", "mid_block": "middle", "up_blocks": "up"}


class ApplyIdentity(io.ComfyNode):
    """An identity on a MODEL and CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamApplyIdentity",
            display_name="Apply Identity",
            category="HyperDream",
            description="Makes the model draw this person wherever the prompt has their trigger word, as in 'a "
            "sks face, smiling'. The input model is not changed.",
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, identity: Identity, strength: float) -> io.NodeOutput:
        with run.ordinary_tensors():
            _check_family(model, identity)
            is_live = not identity.is_constant or models.is_low_precision(model)
            return io.NodeOutput(*_applied(model, clip, identity, {}, strength, live=is_live))


class ApplyIdentityAdvanced(io.ComfyNode):
    """The same with every dial."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        parts = [
            strength_dial(
                part, f"Multiplies the strength in {place}; 1 leaves it as it is, 0 switches the identity off there."
            )
            for part, place in (
                ("down", "the first half of the UNet, which settles the picture's layout"),
                ("middle", "the UNet's narrowest part"),
                ("up", "the second half of the UNet, which draws the features"),
                ("text", "the text encoder, for identities that change it"),
            )
        ]
        return io.Schema(
            node_id="HyperDreamApplyIdentityAdvanced",
            display_name="Apply Identity (Advanced)",
            category="HyperDream/advanced",
            description="Apply Identity with a start and an end, a strength for each part of the UNet, and a choice of "
            "how: merged into the weights as a LoRA is, or live while the UNet runs.",
            inputs=[
                *_inputs(),
                *range_dials(),
                choice(
                    "mode",
                    "merged: added to the weights like any LoRA, costs nothing per step. live: added while the "
                    "UNet runs; needed for start and end, and exact on 8-bit checkpoints. automatic picks for you.",
                    ["automatic", "merged", "live"],
                ),
                *parts,
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        identity: Identity,
        strength: float,
        start_percent: float,
        end_percent: float,
        mode: str,
        **parts: float,
    ) -> io.NodeOutput:
        check_range(start_percent, end_percent)
        has_range = start_percent > 0 or end_percent < 1
        if has_range and mode == "merged":
            raise ConfigError(
                "a start or an end cannot be merged into the weights, which are the same in every step; set mode to "
                "live or automatic, or start_percent to 0 and end_percent to 1"
            )
        if not identity.is_constant and mode == "merged":
            raise ConfigError(
                f"the identity acts in the noise bands {said(identity.bands)} and cannot be merged into the weights, "
                "which are the same in every step; set mode to live or automatic"
            )
        with run.ordinary_tensors():
            _check_family(model, identity)
            needs_live = has_range or not identity.is_constant or models.is_low_precision(model)
            is_live = mode == "live" or (mode == "automatic" and needs_live)
            percents = (start_percent, end_percent)
            return io.NodeOutput(*_applied(model, clip, identity, parts, strength, live=is_live, percents=percents))


def _inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="The checkpoint to personalize, of the family the identity was made for."),
        io.Clip.Input("clip", tooltip="Its text encoder, which reads the prompt."),
        IDENTITY.Input("identity", tooltip="From Predict, Polish, Load or Blend."),
        strength_dial(
            "strength",
            "How much of the identity: 1 is as it was made, 0 is the model alone. Lower it if the "
            "pictures do not follow the prompt enough.",
        ),
    ]


def _outputs() -> list[Any]:
    return [
        io.Model.Output(tooltip="The model with the identity."),
        io.Clip.Output(tooltip="The text encoder with the identity; unchanged by most identities."),
    ]


def _check_family(model: Any, identity: Identity) -> None:
    family = models.family_of(model)
    if family.name != identity.family:
        raise BaseMismatchError(
            f"the identity was made for {identity.family!r}, but the model is {family.name!r}; load a checkpoint of "
            f"{identity.family!r}, or make the identity again with this model"
        )


def _weighted(pairs: Mapping[str, LoraPair], parts: Mapping[str, float]) -> dict[str, LoraPair]:
    """The pairs times the factor, if any, of the part they lie in; those of factor 0 are left out."""
    weighted = {}
    for name, pair in pairs.items():
        factor = parts.get(_PARTS.get(name.partition(".")[0], "text"), 1.0)
        if factor != 0:
            weighted[name] = pair if factor == 1 else LoraPair(pair.down, pair.up * factor)
    return weighted


def _applied(
    model: Any,
    clip: Any,
    identity: Identity,
    parts: Mapping[str, float],
    strength: float,
    *,
    live: bool,
    percents: tuple[float, float] = (0.0, 1.0),
) -> tuple[Any, Any]:
    family: BaseFamily = models.family_of(model)
    if strength == 0:
        return model.clone(), clip.clone()
    refuse_banded_text(identity, family)
    text: dict[str, LoraPair] = {}
    unet: dict[Band, dict[str, LoraPair]] = {}
    for band in identity.bands:
        pairs = _weighted(identity.changes(band), parts)
        unet[band] = {name: pair for name, pair in pairs.items() if family.part_of(name) == UNET}
        text = {name: pair for name, pair in pairs.items() if name not in unet[band]}
    if live:
        highest, lowest = (models.percent_to_sigma(model, percent) for percent in percents)
        named = {band: {to_ldm(name, family): pair for name, pair in found.items()} for band, found in unet.items()}
        adapter = LiveAdapter(named, strength, (highest, lowest), partial(models.noise_level, model))
        personalised = patches.with_wrapper(model, adapter)
    else:
        personalised = patches.with_patches(model, unet[WHOLE], family, strength)
    # The text encoder runs once per prompt, so there is nothing to be live in.
    return personalised, patches.clip_with_patches(clip, text, family, strength) if text else clip.clone()
