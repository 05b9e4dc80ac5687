"""Guided sampling in the real ComfyUI: run where `test_real_comfyui.py` is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .test_real_comfyui import Graph, Server, drawing, node, personal, pytestmark, server

# Pytest takes both by their names.
__all__ = ["pytestmark", "server"]

STEPS = 6
SCALE = 3.0
"""cfg of the KSampler that `drawing` has"""


def guided(prompt: str = "a [V] face", **dials: Any) -> dict[str, Any]:
    settings = {
        "negative_prompt": "", "base_prompt": "", "guidance": "hybrid", "base_scale": -1.0, "subject_scale": -1.0,
        "schedule": "", "strength": 1.0, "lora": "none",
    } | dials  # fmt: skip
    identity = {} if settings["lora"] != "none" else {"identity": ["identity", 0]}
    advanced = {"null_strength": -1.0, "rescale": 0.0, "rank_share": 1.0, "start_percent": 0.0, "end_percent": 1.0,
                "weights": ""}  # fmt: skip
    is_advanced = bool(set(dials) & set(advanced))
    wires = {"model": ["base", 0], "clip": ["base", 1], **identity}
    if not is_advanced:
        return node("HyperDreamHybridGuidance", **wires, prompt=prompt, **settings)
    return node("HyperDreamHybridGuidanceAdvanced", **wires, prompt=prompt, **(advanced | settings))


def hybrid(**dials: Any) -> Graph:
    """Drawn by KSampler with the person of the example portrait."""
    graph = drawing(["hybrid", 0], ["base", 1], STEPS, **personal(hybrid=guided(**dials)))
    graph["drawn"]["inputs"] |= {"positive": ["hybrid", 1], "negative": ["hybrid", 2]}
    return graph


def custom(kind: str, **dials: Any) -> Graph:
    """The same, sampled by another of ComfyUI's nodes or guiders."""
    graph = hybrid(**dials)
    ends = {"positive": ["hybrid", 1], "negative": ["hybrid", 2]}
    graph |= {
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["hybrid", 0], scheduler="normal", steps=STEPS, denoise=1.0),
    }
    wires = {"sampler": ["sampler", 0], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]}
    if kind == "SamplerCustom":
        one = node(kind, model=["hybrid", 0], add_noise=True, noise_seed=1, cfg=SCALE, **ends, **wires)
        return graph | {"drawn": one}
    more = {
        "CFGGuider": {**ends, "cfg": SCALE},
        "PerpNegGuider": {**ends, "empty_conditioning": ["hybrid", 2], "cfg": SCALE, "neg_scale": 1.0},
        "DualCFGGuider": {"cond1": ends["positive"], "cond2": ends["negative"], "negative": ends["negative"],
                          "cfg_conds": SCALE, "cfg_cond2_negative": SCALE, "style": "regular"},
    }  # fmt: skip
    return graph | {
        "noise": node("RandomNoise", noise_seed=1),
        "guider": node(kind, model=["hybrid", 0], **more[kind]),
        "drawn": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], **wires),
    }


def plain(prompt: str, mode: str = "") -> Graph:
    """Drawn by ComfyUI's own nodes, with the identity applied or without."""
    if not mode:
        graph = drawing(["base", 0], ["base", 1], STEPS)
    else:
        ones = {"start_percent": 0.0, "end_percent": 1.0, "down": 1.0, "middle": 1.0, "up": 1.0, "text": 1.0}
        wires = {"model": ["base", 0], "clip": ["base", 1], "identity": ["identity", 0], "strength": 1.0}
        apply = node("HyperDreamApplyIdentityAdvanced", **wires, mode=mode, **ones)
        graph = drawing(["apply", 0], ["apply", 1], STEPS, **personal(apply=apply))
    graph["prompt"]["inputs"]["text"] = prompt
    return graph


def test_neutral_dials_are_the_plain_picture(server: Server) -> None:
    wanted = server.picture(plain("a sks face", "live"))
    for dials in ({"guidance": "plain"}, {"guidance": "blend"}, {"null_strength": 1.0}):
        assert np.array_equal(server.picture(hybrid(**dials)), wanted), dials


def test_subject_scale_zero_is_the_base(server: Server) -> None:
    wanted = server.picture(plain("a face"))
    assert np.array_equal(server.picture(hybrid(subject_scale=0.0)), wanted)
    assert np.array_equal(server.picture(hybrid(schedule="0-1:0")), wanted)
    mixed = server.picture(hybrid(base_scale=4.0, subject_scale=2.0))
    assert np.abs(mixed - wanted).mean() > 1.0
    assert np.array_equal(server.picture(plain("a face ")), wanted)


@pytest.mark.parametrize("kind", ["SamplerCustom", "CFGGuider", "DualCFGGuider", "PerpNegGuider"])
def test_samplers_and_guiders_agree(server: Server, kind: str) -> None:
    dials: dict[str, Any] = {"base_scale": 4.0, "subject_scale": 2.0, "schedule": "default"}
    assert np.array_equal(server.picture(custom(kind, **dials)), server.picture(hybrid(**dials)))


def test_an_exported_lora_stands_in(server: Server) -> None:
    server.run(personal(export=node("HyperDreamExportLora", identity=["identity", 0], name="guided")))
    dials = {"base_scale": 4.0, "subject_scale": 2.0}
    found = server.picture(hybrid(lora="hyperdream/guided.safetensors", **dials))
    # The file holds 16 bit numbers.
    assert np.abs(found - server.picture(hybrid(**dials))).mean() < 1.0


def test_two_people_in_two_halves(server: Server) -> None:
    graph = drawing(["people", 0], ["base", 1], STEPS, **personal())
    del graph["prompt"], graph["nothing"]
    settings = guided()["inputs"]
    settings = {name: value for name, value in settings.items() if name not in ("identity", "lora")}
    graph |= {
        "black": node("SolidMask", value=0.0, width=64, height=64),
        "white": node("SolidMask", value=1.0, width=32, height=64),
        "left": node("MaskComposite", destination=["black", 0], source=["white", 0], x=0, y=0, operation="add"),
        "right": node("InvertMask", mask=["left", 0]),
        "blend": node("HyperDreamBlendIdentities", first=["identity", 0], second=["identity", 0], share=0.5),
        "people": node(
            "HyperDreamRegionalIdentities", **settings, identity_1=["identity", 0], mask_1=["left", 0],
            identity_2=["blend", 0], mask_2=["right", 0],
        ),
    }  # fmt: skip
    graph["drawn"]["inputs"] |= {"positive": ["people", 1], "negative": ["people", 2]}
    found = server.picture(graph)
    # Both are the same person, so the halves make one picture.
    assert np.abs(found - server.picture(hybrid())).mean() < 1.0


def test_an_area_on_the_prompt_holds_for_base_and_person(server: Server) -> None:
    area = {"width": 64, "height": 64, "x": 32, "y": 0, "strength": 1.0}
    pictures = []
    for graph in (plain("a face"), hybrid(subject_scale=0.0), plain("a sks face", "live"), hybrid(guidance="plain")):
        graph["area"] = node("ConditioningSetArea", conditioning=graph["drawn"]["inputs"]["positive"], **area)
        graph["drawn"]["inputs"]["positive"] = ["area", 0]
        pictures.append(server.picture(graph))
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[2], pictures[3])
    assert np.abs(pictures[0] - pictures[2]).mean() > 1.0


def test_a_refusal_is_one_message_at_the_node(server: Server) -> None:
    for graph, place, words in (
        (hybrid(schedule="0-0.4:1, 0.5-1:0"), "hybrid", "noise bands have a gap"),
        (hybrid(guidance="weights", weights="1, 1, 1, 1"), "hybrid", "sum to 4, expected 1"),
    ):
        kind, facts = server.finish(server.start(graph))["status"]["messages"][-1]
        assert kind == "execution_error" and facts["node_id"] == place
        assert words in facts["exception_message"]
