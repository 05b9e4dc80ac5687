"""What ComfyUI cannot be asked over HTTP without a GPU: 8 bit weights, and weights that do not fit into its memory.

A process of its own, in ComfyUI's environment:  python inside_comfyui.py COMFYUI PACK
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

COMFYUI, PACK = sys.argv[1:]
os.chdir(COMFYUI)
sys.path.insert(0, COMFYUI)
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()


def pack() -> Any:
    """This pack, as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location(
        "hyperdream", f"{PACK}/__init__.py", submodule_search_locations=[PACK]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hyperdream"] = module
    spec.loader.exec_module(module)
    return sys.modules["hyperdream.nodes"]


def answer(model: Any, budget: int = 0) -> torch.Tensor:
    """The UNet's answer to a fixed noise.

    Args:
        model: MODEL.
        budget: bytes of weights that fit into the GPU's memory; 0 for all of them.
    """
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 32, 8, 8, generator=generator), torch.randn(1, 77, 64, generator=generator)
    sigma = torch.tensor([2.0])
    options = {"wrappers": model.wrappers, "sigmas": sigma}
    model.patch_model(torch.device("cpu"), lowvram_model_memory=budget)
    try:
        found: torch.Tensor = model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)
        return found.clone()
    finally:
        model.unpatch_model(torch.device("cpu"))


def rounded_to_8_bits(model: Any, keep: bool) -> None:
    """Round the weights of a MODEL's linear layers, and store them in 8 bits if they are to be kept so."""
    for layer in model.model.diffusion_model.modules():
        if isinstance(layer, torch.nn.Linear):
            small = layer.weight.data.to(torch.float8_e4m3fn)
            layer.weight.data = small if keep else small.float()
            layer.comfy_cast_weights = True  # as ComfyUI sets it for a checkpoint of 8 bits


def main() -> None:
    nodes = pack()
    picture = np.asarray(Image.open(Path(PACK) / "examples" / "portrait.png").convert("RGB"), np.float32) / 255
    (predictor,) = nodes.making.load_predictor.LoadPredictor.execute("miniature (built in)").args
    faces = nodes.making.prepare_face.PrepareFace.execute(
        torch.from_numpy(picture)[None], detector="already-cropped", order="size", index=0, on_no_face="stop"
    ).args[0]
    (identity,) = nodes.making.predict_identity.PredictIdentity.execute(predictor, faces).args

    def applied(model: Any, clip: Any, mode: str) -> Any:
        dials = {"start_percent": 0.0, "end_percent": 1.0, "down": 1.0, "middle": 1.0, "up": 1.0, "text": 1.0}
        apply = nodes.drawing.apply_identity.ApplyIdentityAdvanced
        return apply.execute(model, clip, identity, strength=1.0, mode=mode, **dials).args[0]

    model, clip, _ = nodes.making.load_miniature.LoadMiniature.execute().args
    base = answer(model)
    for mode in ("merged", "live"):
        person = applied(model, clip, mode)
        whole = answer(person)
        assert (whole - base).abs().max() > 0.01, mode
        torch.testing.assert_close(answer(person, budget=1), whole, rtol=0, atol=1e-4)
        torch.testing.assert_close(answer(model), base, rtol=0, atol=0)

    eight, rounded = (nodes.making.load_miniature.LoadMiniature.execute().args[0] for _ in range(2))
    rounded_to_8_bits(eight, keep=True)
    rounded_to_8_bits(rounded, keep=False)
    expected = answer(applied(rounded, clip, "merged"))
    for mode in ("live", "automatic"):
        torch.testing.assert_close(answer(applied(eight, clip, mode)), expected, rtol=0, atol=1e-4)
    assert (expected - answer(eight)).abs().max() > 0.01


with torch.inference_mode():
    main()
