"""Good bases of the miniature's size, as the fuzzer's seeds: whole checkpoints and diffusers folders, and their damage.

A folder goes through the fuzzer as a ZIP of its files, of which one is altered, taken out, emptied or added.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from hyperdream_core.bundled import bundled_weights
from hyperdream_core.errors import HyperDreamError
from hyperdream_core.pipelines.diffusers.loading import load_base
from hyperdream_core.pipelines.diffusers.single_file_export import write_single_file
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from tests.fuzz.mutations import DTYPES, WIDTH, flipped, header_altered, json_altered, other_tensors

NUMBERS = ("0", "1", "2", "7", "13", "99", "1000000", "9" * 30, "-1", "x", "")
MARKS = (
    "v_pred", "ztsnr", "edm_mean", "edm_vpred.sigma_max", "state_dict", "global_step", "model_ema.decay",
    "alphas_cumprod", "betas", "cond_stage_model.logit_scale", "cond_stage_model.transformer.text_model.x.y",
    "conditioner.embedders.1.model.ln_final.weight", "model.diffusion_model.label_emb.0.0.weight",
    "first_stage_model.decoder.up_blocks.0.0.conv.weight", "first_stage_model.loss.logvar", "control_model.a",
)  # fmt: skip
CROWDS = (
    "model.diffusion_model.input_blocks.{}.0.weight", "model.diffusion_model.{}.weight", "first_stage_model.{}",
    "first_stage_model.encoder.down.{}.block.0.conv1.weight", "cond_stage_model.transformer.text_model.{}", "{}",
)  # fmt: skip
"""Names of which a file may hold ten thousand."""


def write_checkpoint(path: Path) -> None:
    """The shipped base as a single file."""
    write_single_file(path, load_base())


def write_checkpoint_of_a_flat_vae(path: Path) -> None:
    """The same with a VAE as Stable Diffusion's, wide enough for groups of 32."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(2)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 64), latent_channels=32, scaling_factor=1.0,
        )  # fmt: skip
    write_single_file(path, replace(load_base(), vae=vae.train(False)))


def write_folder(path: Path) -> None:
    """The shipped UNet, a small VAE, a small text encoder and a tokenizer of few words, zipped."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = path.parent / "made"
    base = bundled_weights() / "miniature" / "base"
    for part in ("unet", "scheduler"):
        shutil.copytree(base / part, folder / part)
    shutil.copyfile(base / "model_index.json", folder / "model_index.json")
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, "fa", "ce</w>", *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=32,
        ).save_pretrained(folder / "vae")  # fmt: skip
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
            )
        ).save_pretrained(folder / "text_encoder")  # fmt: skip
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\nf a\nc e</w>\n")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(base / "tokenizer" / name, tokenizer / name)
    files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    path.write_bytes(_zipped(files))
    shutil.rmtree(folder)


def read_folder(path: Path) -> object:
    """`drawn_by` the base in a zipped folder."""
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return drawn_by(folder)


def drawn_by(path: Path) -> object:
    """The base at a path and a picture of it: what is read is read right only if it draws."""
    base = load_base(path)
    try:
        return [*base.modules(), draw(base, ["a face"], None, DrawConfig(steps=2, size=32))]
    except HyperDreamError as error:
        # Of numbers, not of the file: it names what came out as NaN.
        raise HyperDreamError(f"{path.stem}: {error}") from error


def folder_altered(content: bytes, chance: random.Random) -> bytes:
    """A zipped folder with one file of it, or two, altered; mostly a configuration."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    weights = {name: 3 if name.endswith(".json") else 1 for name in files}
    for _ in range(chance.choice((1, 1, 1, 2))):
        name = chance.choices(list(weights), list(weights.values()))[0]
        del weights[name]
        kind = chance.random()
        if kind < 0.05:
            files.pop(name)
        elif kind < 0.08:
            files[name] = b""
        elif kind < 0.12:
            files[_other_name(name, chance)] = files.pop(name)
        elif kind < 0.15:
            files[_other_name(name, chance)] = files[name]
        else:
            files[name] = {".safetensors": checkpoint_altered, ".json": json_altered}.get(Path(name).suffix, flipped)(
                files[name], chance
            )
    return _zipped(files)


def _other_name(name: str, chance: random.Random) -> str:
    new = (
        name.replace(".safetensors", ".fp16.safetensors"), name.replace("model", "model-00001-of-00002"), name + ".bin",
        f"{name}.index.json", name.replace("config.json", "generation_config.json"), "tokenizer/tokenizer.json",
        "tokenizer/added_tokens.json", "tokenizer/chat_template.jinja", "unet/adapter_config.json",
    )  # fmt: skip
    return chance.choice(new)


def _zipped(files: dict[str, bytes]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def checkpoint_altered(content: bytes, chance: random.Random) -> bytes:
    """A checkpoint with its header or numbers altered, mostly as the format allows, or its tensors other ones."""
    if chance.random() < 0.1:
        size = int.from_bytes(content[:8], "little")
        changed = bytearray(content)
        for _ in range(chance.choice((1, 2, 8))):
            changed[chance.randrange(8, 8 + size)] = chance.randrange(32, 127)
        return bytes(changed)
    return header_altered(content, chance, _other_parts if chance.random() < 0.7 else other_tensors)


def _other_parts(tensors: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Tensors of a checkpoint with another level, part, shape, kind or crowd of them."""
    if not tensors:
        return tensors
    name = chance.choice(sorted(tensors))
    dtype, shape, data = tensors[name]
    kind = chance.randrange(8)
    if kind == 0:
        new = re.sub(r"\d+", lambda match: chance.choice((match[0], *NUMBERS)), name)
        return {(new if key == name else key): one for key, one in tensors.items()}
    if kind == 1:
        levels = name.split(".")
        prefix = ".".join(levels[: chance.randrange(1, len(levels) + 1)])
        new = chance.choice(("", "x", prefix + ".0", "model.diffusion_model", "cond_stage_model.transformer"))
        kept = {key: one for key, one in tensors.items() if not key.startswith(prefix)}
        moved = {new + key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}
        return kept | moved if new else kept
    if kind == 2:
        other = chance.choice(sorted(tensors))
        return {**tensors, name: tensors[other], other: tensors[name]}
    if kind == 3:
        times = chance.choice((0, 2, 3, 5))
        side = shape[0] * times if shape else times
        return {**tensors, name: (dtype, [side, *shape[1:]], data * times)}
    if kind == 4:
        other, count = chance.choice(DTYPES), chance.choice((0, 1, 4))
        return {**tensors, chance.choice(MARKS): (other, [count], bytes(count * WIDTH.get(other, 4)))}
    if kind == 5:
        part, other = name.split(".")[0], chance.choice(("F64", "F32", "I8", "F8_E4M3", "BOOL", "I64"))
        return {key: _as(other, one) if key.startswith(part) else one for key, one in tensors.items()}
    if kind == 6:
        pattern, count = chance.choice(CROWDS), chance.choice((300, 3000))
        return tensors | {pattern.format(number): ("F32", [0], b"") for number in range(count)}
    return other_tensors(tensors, chance)


def _as(other: str, tensor: tuple[str, list[int], bytes]) -> tuple[str, list[int], bytes]:
    dtype, shape, data = tensor
    count = len(data) // WIDTH.get(dtype, 4)
    return other, shape, bytes(count * WIDTH.get(other, 1))
