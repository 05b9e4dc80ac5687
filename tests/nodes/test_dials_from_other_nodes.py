"""Numbers that other nodes give, which ComfyUI holds to no limits: refused by the name that the dial has here."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from hyperdream_core.faces.prepare import PrepareConfig
from hyperdream_core.pipelines.drawing.guidance_config import GuidanceConfig
from hyperdream_core.pipelines.make_identity import MakeIdentityConfig
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.predictors.predict import PredictConfig

from .conftest import Host
from .test_schemas import schemas

CONFIGS = (PrepareConfig, GuidanceConfig, MakeIdentityConfig, PolishConfig, PredictConfig)
FIELDS = {name for config in CONFIGS for name in config.__dataclass_fields__}
"""The core's own names of its dials."""
NUMBERS = {"INT", "FLOAT"}


def missing_dials(message: str, inputs: set[str]) -> set[str]:
    """Names in a message that a user looks for in vain: of the core's dials, and of none that the node has."""
    begins = {re.split(r"\W", message, maxsplit=1)[0]} & FIELDS
    named = {word for word in re.findall(r"\w+", message) if "_" in word and word in FIELDS}
    return (begins | named) - inputs


def test_a_missing_dial_is_told_from_a_word() -> None:
    assert missing_dials("face must be 0 or more", {"index"}) == {"face"}
    assert missing_dials("no face: lower min_score", {"index"}) == {"min_score"}
    assert missing_dials("picture 1 shows no face", {"index"}) == set()


@pytest.mark.parametrize("name", ["PrepareFace", "HybridGuidance", "HybridGuidanceAdvanced", "PolishIdentityAdvanced",
                                  "ApplyIdentityAdvanced", "BlendIdentities"])  # fmt: skip
@pytest.mark.parametrize("far", [-1e9, 1e9])
def test_refused_numbers_have_the_name_of_their_dial(
    host: Host, miniature: Any, faces: Any, identity: Any, portrait: Any, name: str, far: float
) -> None:
    _, schema = schemas(host)[f"HyperDream{name}"]
    defaults = {one.id: one.facts["default"] for one in schema.inputs if "default" in one.facts}
    wires = {"model": miniature[0], "clip": miniature[1], "vae": miniature[2], "faces": faces, "identity": identity,
             "image": portrait, "first": identity, "second": identity}  # fmt: skip
    inputs = {one.id for one in schema.inputs}
    given = defaults | {key: value for key, value in wires.items() if key in inputs}
    short = {"detector": "already-cropped", "steps": 1, "preview_every": 0, "batch": 1, "preserve_batch": 1}
    given |= {key: value for key, value in short.items() if key in inputs}
    refusals = []
    for one in schema.inputs:
        if one.type_name in NUMBERS:
            number = int(far) if one.type_name == "INT" else far
            # Some dials do with any number.
            try:
                host.run(name, **(given | {one.id: number}))
            except host.core("errors").HyperDreamError as error:
                refusals.append(str(error))
    assert refusals
    assert [said for said in refusals if missing_dials(said, inputs)] == []


@pytest.mark.parametrize("detector", ["auto", "cascade"])
def test_a_photograph_without_a_face_names_only_dials_of_the_node(host: Host, detector: str) -> None:
    _, schema = schemas(host)["HyperDreamPrepareFace"]
    with pytest.raises(host.core("errors").HyperDreamError) as refused:
        host.run("PrepareFace", image=torch.zeros(1, 96, 96, 3), detector=detector, order="size", index=0,
                 on_no_face="stop")  # fmt: skip
    assert missing_dials(str(refused.value), {one.id for one in schema.inputs}) == set()


def test_weights_beside_another_guidance_are_named_as_the_dial_is(host: Host, miniature: Any, identity: Any) -> None:
    _, schema = schemas(host)["HyperDreamHybridGuidanceAdvanced"]
    defaults = {one.id: one.facts["default"] for one in schema.inputs if "default" in one.facts}
    given = defaults | {"model": miniature[0], "clip": miniature[1], "identity": identity, "weights": "0, 0, -2, 3"}
    with pytest.raises(host.core("errors").ConfigError, match=r"^branch weights belong to guidance 'weights'"):
        host.run("HybridGuidanceAdvanced", **given)
