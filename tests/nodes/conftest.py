"""The pack loaded as ComfyUI loads it, beside a double of ComfyUI of our own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = Path(__file__).parent / "double"
PACK = "custom_nodes_hyperdream"
_HOST = {"comfy", "comfy_api", "folder_paths", "latent_preview", "server"}


@dataclass(frozen=True)
class Host:
    """The pack and the double around it."""

    pack: ModuleType
    folder: Path

    def __getattr__(self, name: str) -> Any:
        """A node's class by its name."""
        return getattr(self.module(""), name)

    def module(self, name: str) -> Any:
        """A module of `nodes`."""
        return import_module(f"{PACK}.nodes.{name}".rstrip("."))

    def core(self, name: str) -> Any:
        """A module of the pack's own copy of the core."""
        return import_module(f"{PACK}.hyperdream_core.{name}")

    def comfy(self, name: str) -> Any:
        """A module of the double."""
        return import_module(name)

    def run(self, node: str, **inputs: Any) -> Any:
        """A node's outputs, run as ComfyUI's executor runs it."""
        with torch.inference_mode():
            return self.module("").__dict__[node].execute(**inputs).args


@pytest.fixture(scope="module")
def loaded_pack() -> Iterator[ModuleType]:
    """The pack under a name of its own; neither it nor the double is left behind."""
    sys.path.insert(0, str(DOUBLE))
    try:
        spec = spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        assert spec is not None and spec.loader is not None
        pack = module_from_spec(spec)
        sys.modules[PACK] = pack
        spec.loader.exec_module(pack)
        yield pack
    finally:
        sys.path.remove(str(DOUBLE))
        for name in [name for name in sys.modules if name.partition(".")[0] in {PACK, *_HOST}]:
            del sys.modules[name]


@pytest.fixture
def host(loaded_pack: ModuleType, tmp_path: Path) -> Host:
    """A fresh ComfyUI folder with the pack in it."""
    here = Host(loaded_pack, tmp_path)
    here.comfy("folder_paths").start_in(tmp_path)
    here.comfy("comfy.model_management").reset()
    here.comfy("comfy.utils").shown.clear()
    here.module("host.folders").register_folders()
    return here


@pytest.fixture(scope="module")
def miniature(loaded_pack: ModuleType) -> Any:
    """MODEL, CLIP and VAE; what nodes do to them is undone by whoever loads another clone."""
    with torch.inference_mode():
        return import_module(f"{PACK}.nodes").LoadMiniature.execute().args


@pytest.fixture(scope="module")
def portrait() -> Tensor:
    """(1, h, w, 3) in 0..1, as Load Image gives it."""
    import numpy as np
    from PIL import Image

    with Image.open(ROOT / "examples" / "portrait.png") as image:
        return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]


@pytest.fixture
def faces(host: Host, portrait: Tensor) -> Any:
    return host.run(
        "PrepareFace", image=portrait, detector="already-cropped", order="size", index=0, on_no_face="stop"
    )[0]


@pytest.fixture
def identity(host: Host, faces: Any) -> Any:
    (predictor,) = host.run("LoadPredictor", predictor="miniature (built in)")
    return host.run("PredictIdentity", predictor=predictor, faces=faces)[0]
