"""What befalls files and folders: each damage as a function of the path, and the half-states that are tried."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def put(path: Path, content: bytes) -> None:
    path.unlink()  # A link to the finished one's.
    path.write_bytes(content)


def cut(path: Path) -> None:
    put(path, path.read_bytes()[: path.stat().st_size * 2 // 3])


def empty(path: Path) -> None:
    put(path, b"")


def longer(path: Path) -> None:
    put(path, path.read_bytes() + bytes(64))


def zeros(path: Path) -> None:
    put(path, bytes(path.stat().st_size))


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    put(path, bytes(content))


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def emptied(path: Path) -> None:
    remove(path)
    path.mkdir()


def as_file(path: Path) -> None:
    remove(path)
    path.write_text("a file")


def as_folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def as_link(path: Path) -> None:
    remove(path)
    path.symlink_to("nowhere")


def as_pipe(path: Path) -> None:
    remove(path)
    os.mkfifo(path)


def no_record(path: Path) -> None:
    path.with_name(f"{path.name}.made.json").unlink()


def of_another(path: Path) -> None:
    put(path, path.with_name("hypernetwork.safetensors").read_bytes())


UNET = "unet/diffusion_pytorch_model.safetensors"
DAMAGED_MATERIALS = [
    *((damage, name) for damage in (cut, empty, longer, zeros, one_bit, remove)
      for name in ("corpus/faces.npy", "latents/faces.npy")),
    (cut, "corpus/pets.npy"),
    (empty, "corpus/references.npy"),
    (zeros, "corpus/judges.npy"),
    (remove, "latents/pets.npy"),
    (remove, "encoder-only/config.json"),
    (cut, "encoder-only/diffusion_pytorch_model.safetensors"),
    (emptied, "encoder-only"),
    (remove, "tokenizer/merges.txt"),
    (empty, "tokenizer/tokenizer.json"),
    (remove, "corpus"),
    (remove, "latents"),
    (remove, "corpus/faces.npy.made.json"),
    (cut, "latents/faces.npy.made.json"),
    (empty, "encoder-only.made.json"),
]  # fmt: skip
DAMAGED_RESULTS = [
    *((damage, f"base-2/{UNET}") for damage in (cut, empty, longer, zeros, one_bit, remove)),
    (remove, "base-2/model_index.json"),
    (cut, "base-2/unet/config.json"),
    (remove, "base-2/tokenizer"),
    (emptied, "base-2"),
    (empty, "judges/identity.safetensors"),
    (remove, "judges/attributes.safetensors"),
    (cut, "encoder/encoder.safetensors"),
    (remove, "features/pooled.npy"),
    (cut, "features/tokens.npy"),
    (remove, "features"),
    (cut, "autoencoder/diffusion_pytorch_model.safetensors"),
    (emptied, "hypernetwork-0-2"),
    (one_bit, "hypernetwork-0-2/hypernetwork.safetensors"),
    (remove, "hypernetwork-0-2"),
    (cut, "base-2.made.json"),
    (zeros, "judges.made.json"),
]
Damage = Callable[[Path], None]
