"""Regional Identities: several people in one picture, each in a place of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...hyperdream_core.errors import ConfigError
from ...hyperdream_core.identity import Identity
from ..host import run
from ..wires import IDENTITY
from .guided_subjects import ConnectedSubject, Prompts
from .hybrid_guidance import PRESETS, base_inputs, dial_inputs, guidance_config, guided_output, outputs, prompt_inputs

_MOST = 4
_Places = Sequence[tuple[Identity | None, Tensor | None]]


class RegionalIdentities(io.ComfyNode):
    """A MODEL that draws each of two to four people in a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        places = []
        for number in range(1, _MOST + 1):
            optional = number > 2
            who = "only if there are that many" if optional else "from Predict, Polish, Load or Blend"
            places += [
                IDENTITY.Input(f"identity_{number}", optional=optional, tooltip=f"Person {number}, {who}."),
                io.Mask.Input(
                    f"mask_{number}",
                    optional=optional,
                    tooltip=f"Where person {number} goes, in the picture's proportions; masks must not overlap.",
                ),
            ]
        return io.Schema(
            node_id="HyperDreamRegionalIdentities",
            display_name="Regional Identities",
            category="HyperDream",
            description="Several people in one picture: each identity acts only inside its mask, and the base "
            "draws the rest. One UNet call per step, with the settings of Hybrid Guidance.",
            inputs=[*base_inputs(), *places[:4], *prompt_inputs(), *dial_inputs(PRESETS), *places[4:]],
            outputs=outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        identity_1: Identity,
        mask_1: Tensor,
        identity_2: Identity,
        mask_2: Tensor,
        prompt: str,
        negative_prompt: str,
        base_prompt: str,
        guidance: str,
        base_scale: float,
        subject_scale: float,
        schedule: str,
        strength: float,
        identity_3: Identity | None = None,
        mask_3: Tensor | None = None,
        identity_4: Identity | None = None,
        mask_4: Tensor | None = None,
    ) -> io.NodeOutput:
        places: _Places = [(identity_1, mask_1), (identity_2, mask_2), (identity_3, mask_3), (identity_4, mask_4)]
        with run.ordinary_tensors():
            config = guidance_config(guidance, base_scale, subject_scale, schedule, strength)
            return guided_output(model, clip, _connected(places), Prompts(prompt, negative_prompt, base_prompt), config)


def _connected(places: _Places) -> list[ConnectedSubject]:
    """Those of whom both identity and mask are connected."""
    subjects = []
    for number, (identity, mask) in enumerate(places, start=1):
        if (identity is None) != (mask is None):
            has, lacks = ("mask", "identity") if identity is None else ("identity", "mask")
            raise ConfigError(
                f"{has}_{number} is connected and {lacks}_{number} is not, but a person needs both; connect it too"
            )
        if identity is not None:
            subjects.append(ConnectedSubject(identity, mask))
    return subjects
