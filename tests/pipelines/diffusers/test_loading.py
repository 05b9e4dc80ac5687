from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from hyperdream_core.errors import BaseMismatchError, ConfigError, FileFormatError, MissingDependencyError
from hyperdream_core.formats.container import read_table
from hyperdream_core.miniature.recipe.autoencoder import new_autoencoder
from hyperdream_core.miniature.recipe.base_training import new_text_encoder
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pipelines.diffusers import building
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.diffusers.loading import base_family, load_base
from hyperdream_core.pipelines.diffusers.single_file_export import write_single_file
from tests.pipelines.diffusers.vaes import wide_autoencoder

PROMPTS = ["a sks face, smiling", "a pet"]


def outputs(base: DiffusersBase) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 32, 4, 4, generator=generator)
    with torch.no_grad():
        conditioning = base.encode_prompt(PROMPTS)
        predicted = base.predict(latents, torch.tensor([3, 900]), conditioning)
    pictures = torch.rand(1, 3, 32, 32, generator=generator)
    return [conditioning.tokens, predicted, base.encode_image(pictures), base.decode_latents(latents)]


@pytest.fixture(scope="module", params=["dc", "kl"])
def checkpoint(
    request: pytest.FixtureRequest,
    make_base: Callable[[int], DiffusersBase],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[DiffusersBase, Path]:
    """A base with the family's own text encoder and either kind of VAE, and the same as a single file."""
    random = make_base(2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        vae = new_autoencoder(torch.rand(16, 3, 32, 32)) if request.param == "dc" else wide_autoencoder()
        text_encoder = new_text_encoder()
    whole = replace(random, vae=vae.train(False), text_encoders=(text_encoder.train(False),))
    path = tmp_path_factory.mktemp("file") / "whole.safetensors"
    write_single_file(path, whole, torch.float32)
    return whole, path


def test_a_diffusers_folder_is_loaded_as_it_was_saved(
    base: DiffusersBase, folder: Path, make_base: Callable[[int], DiffusersBase]
) -> None:
    loaded = load_base(folder)
    assert loaded.family.name == "miniature" and loaded.noise.name == "v_prediction"
    for one, other in zip(base.modules(), loaded.modules(), strict=True):
        weights, others = one.state_dict(), other.state_dict()
        assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    for one, other in zip(outputs(base), outputs(loaded), strict=True):
        torch.testing.assert_close(one, other)
    assert loaded.fingerprint() == base.fingerprint() != make_base(1).fingerprint()
    assert not any(p.requires_grad or m.training for m in loaded.modules() for p in m.parameters())


def test_a_single_file_gives_the_same_outputs(checkpoint: tuple[DiffusersBase, Path]) -> None:
    whole, path = checkpoint
    loaded = load_base(path)
    assert loaded.family.name == "miniature" and loaded.noise.name == "v_prediction"
    for one, other in zip(outputs(whole), outputs(loaded), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(loaded.noise.alphas_cumprod, whole.noise.alphas_cumprod)


def test_half_precision_keeps_the_fingerprint(checkpoint: tuple[DiffusersBase, Path]) -> None:
    half = load_base(checkpoint[1], dtype=torch.float16)
    assert half.dtype == torch.float16
    # A KL autoencoder's activations overflow fp16, the miniature's do not.
    assert half.vae.dtype == (torch.float32 if isinstance(half.vae, AutoencoderKL) else torch.float16)
    assert half.fingerprint() == checkpoint[0].fingerprint()


def test_prompts_are_encoded_and_latents_decoded_as_diffusers_does(base: DiffusersBase) -> None:
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        tokenizer=base.tokenizers[0],
        unet=base.unet,
        scheduler=DDIMScheduler.from_config(dict(base.scheduler_config)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(PROMPTS, torch.device("cpu"), 1, False)
        torch.testing.assert_close(base.encode_prompt(PROMPTS).tokens, expected)
        latents = torch.randn(2, 32, 2, 3, generator=torch.Generator().manual_seed(1))
        pictures = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(base.decode_latents(latents), pictures.clamp(0, 1))
    assert base.decode_latents(latents).shape == (2, 3, 16, 24)


def test_adapters_reach_unet_and_text_encoder_under_their_canonical_names(base: DiffusersBase) -> None:
    before = outputs(base)

    def pair(i: int, o: int) -> LoraPair:
        generator = torch.Generator().manual_seed(i)
        return LoraPair(torch.randn(2, i, generator=generator), torch.randn(o, 2, generator=generator))

    text = {"text_encoder.text_model.encoder.layers.1.self_attn.q_proj": pair(64, 64)}
    unet = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": pair(64, 128)}
    with base.adapted(unet):
        changed = outputs(base)
    assert torch.equal(changed[0], before[0]) and not torch.equal(changed[1], before[1])
    with base.adapted(text):
        assert not torch.equal(outputs(base)[0], before[0])
    assert all(torch.equal(one, other) for one, other in zip(outputs(base), before, strict=True))


def test_a_folder_with_old_weights_only_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "old")
    vae = tmp_path / "old" / "vae"
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "model.bin")
    with pytest.raises(FileFormatError, match=r"model\.bin: is the only kind of weights.*can run code"):
        load_base(tmp_path / "old")


def test_an_incomplete_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "half")
    (tmp_path / "half/scheduler/scheduler_config.json").unlink()
    with pytest.raises(FileFormatError, match="half: is not a complete diffusers folder"):
        load_base(tmp_path / "half")
    shutil.rmtree(tmp_path / "half/unet")
    with pytest.raises(FileFormatError, match="unet: has no weights"):
        load_base(tmp_path / "half")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"there is no such base at .*nothing\.safetensors, but 'miniature'"):
        load_base(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95model", b"PK\x03\x04" + b"0" * 40, b"\xff" * 64])
def test_what_is_not_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"model\.safetensors: "):
        load_base(file)


def test_a_cut_checkpoint_is_refused(checkpoint: tuple[DiffusersBase, Path], tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(checkpoint[1].read_bytes()[:-1000])
    with pytest.raises(FileFormatError, match=r"cut\.safetensors: is not a readable safetensors file"):
        load_base(file)


def test_checkpoints_of_unknown_families_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(BaseMismatchError, match=r"flux\.safetensors: the checkpoint has 1 tensors and no attention"):
        load_base(file)


@pytest.mark.parametrize(
    ("dropped", "words"),
    [
        ("first_stage_model.", "has no VAE"),
        ("cond_stage_model.", "has no text encoder 1"),
        (
            "model.diffusion_model.out.2.bias",
            "needs 'model.diffusion_model.out.2.bias' of shape .32,., but",
        ),
    ],
)
def test_incomplete_checkpoints_are_refused(
    checkpoint: tuple[DiffusersBase, Path], tmp_path: Path, dropped: str, words: str
) -> None:
    file = tmp_path / "part.safetensors"
    save_file({k: v for k, v in load_file(checkpoint[1]).items() if not k.startswith(dropped)}, file)
    with pytest.raises(FileFormatError, match=words):
        load_base(file)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install diffusers"):
        load_base()


def test_pictures_that_do_not_fit_the_vae_are_refused(base: DiffusersBase) -> None:
    with pytest.raises(ConfigError, match="32x30 px does not fit the VAE"):
        base.encode_image(torch.zeros(1, 3, 30, 32))


def test_the_bundled_tokenizer_is_clips() -> None:
    from transformers import CLIPTokenizer

    folder = Path(__file__).parents[3] / "weights" / "miniature" / "base" / "tokenizer"
    ids = CLIPTokenizer.from_pretrained(folder)("a sks face").input_ids
    assert ids == [49406, 320, 48136, 1710, 49407]


def test_the_family_is_known_before_the_base_is_loaded(tmp_path: Path) -> None:
    assert base_family().name == "miniature"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4)}, tmp_path / "odd.safetensors")
    with pytest.raises(BaseMismatchError, match=r"^odd\.safetensors: the checkpoint has .* none of the known families"):
        base_family(tmp_path / "odd.safetensors")
    with pytest.raises(FileFormatError, match="there is no such base at"):
        base_family(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("key", "value", "dtype"),
    [
        ("model.diffusion_model.out.2.bias", float("nan"), torch.float32),
        ("first_stage_model.decoder.conv_in.bias", float("inf"), torch.bfloat16),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", -float("inf"), torch.float32),
        ("model.diffusion_model.out.2.bias", 1e30, torch.float16),  # finite as stored
    ],
)
def test_weights_that_are_not_finite_where_they_compute_are_refused_by_name(
    checkpoint: tuple[DiffusersBase, Path], tmp_path: Path, key: str, value: float, dtype: torch.dtype
) -> None:
    file, tensors = tmp_path / "broken.safetensors", load_file(checkpoint[1])
    assert key in tensors
    tensors[key][3] = value
    save_file(tensors, file)
    with pytest.raises(FileFormatError, match=r"broken\.safetensors: tensor '.*bias' holds NaN or infinite numbers"):
        load_base(file, dtype=dtype)


def test_a_folder_with_nan_in_its_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "nan")
    file = tmp_path / "nan" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(FileFormatError, match=r"nan: tensor 'unet\.conv_in\.bias' holds NaN"):
        load_base(tmp_path / "nan")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("ask", [load_base, base_family, read_table])
def test_a_pipe_is_no_base_and_is_not_waited_for(ask: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "base.safetensors")
    with pytest.raises(FileFormatError, match="a pipe or a device"):
        ask(tmp_path / "base.safetensors")


@pytest.mark.parametrize(
    ("part", "entries"),
    [
        ("unet", {"layers_per_block": 10**9}),
        ("text_encoder", {"num_hidden_layers": 10**9}),
        ("unet", {"block_out_channels": "wide"}),
        ("unet", {"attention_head_dim": 0}),
        ("scheduler", {"num_train_timesteps": 10**9}),
        ("scheduler", {"beta_end": 7.0}),
        ("scheduler", {"beta_start": "low"}),
        ("scheduler", {"_class_name": "EDMEulerScheduler"}),
    ],
)
def test_a_folder_whose_configuration_is_out_of_bounds_is_refused(
    part: str, entries: dict[str, object], folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "base")
    file = tmp_path / "base" / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    with pytest.raises(FileFormatError):
        load_base(tmp_path / "base")
