"""A base model from disk, through diffusers: the miniature, a diffusers folder, or a single-file checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bases import BaseFamily, detect_family
from ..data.bundled import bundled_weights
from ..errors import BaseMismatchError, ConfigError, FileFormatError, MissingDependencyError
from ..models.adapted_linear import live
from ..ops.lowrank import LoraPair
from .base import Conditioning

MINIATURE = "miniature"

_PIXELS_AT_ONCE = 4 * 512 * 512
"""The VAE sees pictures in portions of this many px: its activations are the largest of all."""
_OLD_WEIGHTS = ("*.bin", "*.ckpt", "*.pt", "*.pth")


@dataclass(frozen=True, eq=False, kw_only=True)
class DiffusersBase:
    """A base model made of diffusers and transformers modules; a `pipelines.base.Base`."""

    family: BaseFamily
    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    scheduler_config: Mapping[str, Any]
    """What any diffusers scheduler is built from."""
    alphas_cumprod: Tensor
    """(timesteps,) float32"""

    @property
    def prediction_type(self) -> str:
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def modules(self) -> tuple[nn.Module, ...]:
        return (self.unet, self.vae, *self.text_encoders)

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts as (b, 77, d); what is beyond CLIP's 77 tokens is cut off, as everywhere."""
        states, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            ids = tokenizer(
                list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            output = encoder(ids.to(self.device), output_hidden_states=len(self.text_encoders) > 1)
            if len(self.text_encoders) == 1:
                return Conditioning(output.last_hidden_state)
            # SDXL reads the last layer but one of both, without its final normalisation, and pools the second.
            states.append(output.hidden_states[-2])
            pooled = getattr(output, "text_embeds", None)
        return Conditioning(torch.cat(states, dim=-1), pooled)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Scaled latents (b, c, h/8, w/8) float32 of pictures (b, 3, h, w) in 0..1: the posterior's mean."""
        factor = self.family.vae_factor
        if images.shape[-1] % factor or images.shape[-2] % factor:
            raise ConfigError(
                f"a picture of {images.shape[-1]}x{images.shape[-2]} px does not fit the VAE, whose latents cover "
                f"{factor}x{factor} px; use multiples of {factor}"
            )
        images = (images * 2 - 1).to(self.vae.device, self.vae.dtype)
        parts = images.split(_at_once(images.shape[-1] * images.shape[-2]))
        means = [self.vae.encode(part).latent_dist.mean.float() for part in parts]
        return (torch.cat(means) * self.vae.config.scaling_factor).to(self.device)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) float32 in 0..1 of scaled latents."""
        latents = (latents.float() / self.vae.config.scaling_factor).to(self.vae.device, self.vae.dtype)
        parts = latents.split(_at_once(latents.shape[-1] * latents.shape[-2] * self.family.vae_factor**2))
        return torch.cat([(self.vae.decode(part).sample.float() / 2 + 0.5).clamp(0, 1) for part in parts])

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (b, c, h, w) in float32."""
        extra = None
        if conditioning.pooled is not None:
            height, width = (side * self.family.vae_factor for side in latents.shape[-2:])
            # SDXL is told the picture's original size, crop corner and target size.
            sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=self.dtype)
            extra = {"text_embeds": conditioning.pooled.to(self.dtype), "time_ids": sizes.expand(len(latents), -1)}
        output = self.unet(
            latents.to(self.device, self.dtype),
            timesteps.to(self.device),
            encoder_hidden_states=conditioning.tokens.to(self.dtype),
            added_cond_kwargs=extra,
            return_dict=False,
        )
        result: Tensor = output[0]
        return result.float()

    @contextmanager
    def adapted(
        self, pairs: Mapping[str, LoraPair], strength: float | Tensor = 1.0, samples_each: int = 1
    ) -> Iterator[None]:
        """Run with live adapters by canonical layer name; those of text encoders act in `encode_prompt`."""
        with ExitStack() as stack:
            for network, part in self._split(pairs):
                stack.enter_context(live(network, part, strength, samples_each))
            yield

    def fingerprint(self) -> str:
        """SHA-256 (hex) that tells checkpoints of a family apart: of a sample of every UNet tensor, rounded to fp16.

        So a checkpoint saved in fp16 and its fp32 original have the same one; hashing all of it would take seconds.
        """
        digest = hashlib.sha256(self.family.name.encode())
        for name, tensor in sorted(self.unet.state_dict().items()):
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float16)
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(sample.numpy().astype("<f2").tobytes())
        return digest.hexdigest()

    def _split(self, pairs: Mapping[str, LoraPair]) -> list[tuple[nn.Module, dict[str, LoraPair]]]:
        """The pairs of each network, under the layers' names within it."""
        names = ["text_encoder", "text_encoder_2"][: len(self.text_encoders)]
        parts: list[tuple[nn.Module, dict[str, LoraPair]]] = [(self.unet, {})]
        parts += [(encoder, {}) for encoder in self.text_encoders]
        for layer, pair in pairs.items():
            prefix, _, rest = layer.partition(".")
            place = names.index(prefix) + 1 if prefix in names else 0
            network, part = parts[place]
            name = rest if place else layer
            # transformers 5.6 dropped the `text_model` level of CLIPTextModel, which files and kohya keys still have.
            if place and not hasattr(network, "text_model"):
                name = name.removeprefix("text_model.")
            part[name] = pair
        return [(network, part) for network, part in parts if part]


def load_base(
    path: str | Path = MINIATURE, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusersBase:
    """The base model at a path, without any network access.

    Args:
        path: `miniature`, a folder in the diffusers layout, or a single-file checkpoint (.safetensors) of SD 1.x,
            SD 2.x, SDXL or the miniature.
        device: where to put it.
        dtype: of UNet and text encoders; the VAE stays in float32 where fp16 would overflow it.

    Raises:
        FileFormatError: nothing there, damaged, or not safetensors.
        BaseMismatchError: a checkpoint of an unknown family.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    require_diffusers()
    if str(path) == MINIATURE:
        path = bundled_weights() / "miniature" / "base"
    path = Path(path)
    if path.is_dir():
        base = _load_folder(path, dtype)
    elif path.is_file():
        from .single_file import load_single_file

        base = load_single_file(path, dtype)
    else:
        raise FileFormatError(
            path,
            f"there is no such base at {path}, but 'miniature', a diffusers folder or a .safetensors checkpoint is "
            "expected; check the path",
        )
    for module in base.modules():
        module.requires_grad_(False).train(False).to(device)
    if dtype == torch.float16 and base.vae.config.get("force_upcast", False):
        base.vae.to(torch.float32)
    return base


def require_diffusers() -> None:
    """Raise MissingDependencyError unless diffusers and transformers are there; hosts come without the first."""
    for package in ("diffusers", "transformers"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, f"pip install {package}")


def alphas_cumprod_of(scheduler_config: Mapping[str, Any]) -> Tensor:
    """(timesteps,) float32: alpha_bar of a diffusers scheduler configuration."""
    from diffusers import DDPMScheduler

    known = {key: value for key, value in scheduler_config.items() if not key.startswith("_")}
    alphas: Tensor = DDPMScheduler.from_config(known).alphas_cumprod
    return alphas.float()


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a safetensors file's tensors, from its header alone.

    Raises:
        FileFormatError: not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            path,
            f"is not a readable safetensors file ({error}), the only format that is read, because others can run code; "
            "get the checkpoint as .safetensors, or download it again",
        ) from error


def _load_folder(folder: Path, dtype: torch.dtype) -> DiffusersBase:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(folder / "unet"):
        shapes.update(tensor_shapes(file))
    try:
        family = detect_family(shapes)
    except BaseMismatchError as error:
        raise BaseMismatchError(f"{folder}: {error}") from error
    names = [encoder.name for encoder in family.text_encoders]
    variants = {name: _variant(_weight_files(folder / name)) for name in ("unet", "vae", *names)}
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
        encoders = []
        for name in names:
            kind = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
            encoder = kind.from_pretrained(folder / name, variant=variants[name], **options)
            encoders.append(encoder.to(dtype))
        return DiffusersBase(
            family=family,
            unet=UNet2DConditionModel.from_pretrained(
                folder / "unet", variant=variants["unet"], torch_dtype=dtype, **options
            ),
            vae=AutoencoderKL.from_pretrained(folder / "vae", variant=variants["vae"], torch_dtype=dtype, **options),
            text_encoders=tuple(encoders),
            tokenizers=tuple(
                CLIPTokenizer.from_pretrained(folder / name.replace("text_encoder", "tokenizer"), local_files_only=True)
                for name in names
            ),
            scheduler_config=scheduler_config,
            alphas_cumprod=alphas_cumprod_of(scheduler_config),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise FileFormatError(
            folder,
            f"is not a complete diffusers folder ({error}), but unet, vae, text_encoder, tokenizer and scheduler are "
            "expected; download it again",
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    old = next((file for pattern in _OLD_WEIGHTS for file in folder.glob(pattern)), None)
    if old is not None:
        raise FileFormatError(
            old,
            f"is the only kind of weights in {folder}, but only .safetensors is read, because old formats can run "
            "code; get the safetensors form of this model",
        )
    raise FileFormatError(
        folder, f"has no weights (.safetensors) in {folder}, but a base needs them; download the folder again"
    )


def _variant(files: list[Path]) -> str | None:
    """`fp16` if that is the only form there."""
    return "fp16" if all(".fp16." in file.name for file in files) else None


def _at_once(pixels: int) -> int:
    return max(1, math.floor(_PIXELS_AT_ONCE / pixels))
