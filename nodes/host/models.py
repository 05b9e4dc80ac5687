"""ComfyUI's MODEL, CLIP and VAE: what they are made of, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as memory
import comfy.model_patcher
import comfy.model_sampling
import torch
from PIL import Image
from torch import Tensor, nn

from ...hyperdream_core.bases import BaseFamily, detect_family
from ...hyperdream_core.errors import BaseMismatchError
from ...hyperdream_core.ops.noise import DiscreteDiffusion, to_t

_FIRST_LAYER = "input_blocks.0.0.weight"


def unet_of(model: Any) -> nn.Module:
    """The UNet in a MODEL."""
    unet: nn.Module = model.model.diffusion_model
    return unet


def family_of(model: Any) -> BaseFamily:
    """The base family of a MODEL, by the shapes of its weights.

    Inpainting checkpoints count as of their family: they differ in what the first layer takes, which no identity
    changes.

    Raises:
        BaseMismatchError: none of those we know, such as a diffusion transformer.
    """
    named = unet_of(model).named_parameters()
    return detect_family({name: tuple(weight.shape) for name, weight in named if name != _FIRST_LAYER})


def refuse_more_channels(model: Any) -> None:
    """Refuse a MODEL that takes more than noisy latents, for work that gives it nothing else.

    Raises:
        BaseMismatchError: an inpainting, depth or editing checkpoint.
    """
    family = family_of(model)
    first = dict(unet_of(model).named_parameters()).get(_FIRST_LAYER)
    if first is not None and first.shape[1] != family.latent_channels:
        raise BaseMismatchError(
            f"the MODEL is a {family.title} that takes {first.shape[1]} channels, an inpainting or editing checkpoint, "
            f"but polishing needs one of {family.latent_channels}; polish on the ordinary checkpoint, and apply the "
            "identity to this one"
        )


def check_encoding(tokens: Tensor, family: BaseFamily) -> None:
    """Refuse what a CLIP of another family has made of a prompt.

    Args:
        tokens: (b, n, d).
        family: of the MODEL.

    Raises:
        BaseMismatchError: another width than the MODEL reads.
    """
    if tokens.shape[-1] != family.unet.context_dim:
        raise BaseMismatchError(
            f"the CLIP makes tokens of {tokens.shape[-1]} numbers, but {family.title} reads {family.unet.context_dim}; "
            "connect MODEL and CLIP of the same checkpoint"
        )


def is_low_precision(model: Any) -> bool:
    """Whether merging a small change into the MODEL's weights would lose it: 8 bits or fewer."""
    for layer in unet_of(model).modules():
        weight = getattr(layer, "weight", None)
        # ComfyUI's quantised layers name their format; others just hold small numbers.
        if getattr(layer, "quant_format", None) or (isinstance(weight, Tensor) and weight.element_size() < 2):
            return True
    return False


def percent_to_sigma(model: Any, percent: float) -> float:
    """The noise level at a share 0..1 of sampling, as ComfyUI's own start and end percent mean it."""
    return float(model.get_model_object("model_sampling").percent_to_sigma(percent))


def noise_process_of(model: Any) -> DiscreteDiffusion:
    """The noise process that a MODEL samples by.

    Raises:
        BaseMismatchError: a MODEL that was set to sample in another way.
    """
    sampling = model.get_model_object("model_sampling")
    kinds = type(sampling).__bases__
    names = {comfy.model_sampling.V_PREDICTION: "v_prediction", comfy.model_sampling.EPS: "epsilon"}
    found = [name for kind, name in names.items() if kind in kinds]
    if not found or not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
        raise BaseMismatchError(
            f"the MODEL samples as {' and '.join(kind.__name__ for kind in kinds)}, but Stable Diffusion's noise "
            "schedule is needed; connect the MODEL straight from its loader"
        )
    sigmas = sampling.sigmas.detach().to("cpu", torch.float64)
    return DiscreteDiffusion((1.0 / (sigmas.square() + 1.0)).float(), found[0])


def noise_level(model: Any, sigma: float) -> float:
    """t in 0..1 of a noise level of the host, for a MODEL."""
    sampling = model.get_model_object("model_sampling")
    return level_in(sampling, torch.tensor([sigma], device=sampling.sigmas.device))


def level_in(sampling: Any, sigma: Tensor) -> float:
    """t in 0..1 of a noise level (1,) of the host, for what a MODEL samples by."""
    return float(to_t(sampling.timestep(sigma).cpu(), len(sampling.sigmas)))


def inference_dtype(model: Any) -> torch.dtype:
    """Of the numbers the UNet computes with, which may be wider than those it is stored in."""
    dtype: torch.dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    return dtype


def networks_patcher(network: nn.Module) -> Any:
    """A network of ours in the hands of ComfyUI's memory manager."""
    return comfy.model_patcher.ModelPatcher(
        network, load_device=memory.get_torch_device(), offload_device=memory.unet_offload_device()
    )


def load(patcher: Any, bytes_needed: float = 0.0) -> None:
    """Bring a patcher's weights to its device, and others away if memory is short."""
    memory.load_models_gpu([patcher], memory_required=bytes_needed)


def is_small(vae: Any) -> bool:
    """Whether decoding with a VAE moves nothing of weight: under 64 MB."""
    return bool(vae.model_size() < 64e6)


def latent_preview(patcher: Any) -> Callable[[Tensor], Image.Image | None]:
    """ComfyUI's quick look at latents (1, c, h, w), as the user has set it; nothing where previews are off."""
    import latent_preview as previews

    previewer = previews.get_previewer(patcher.load_device, patcher.model.latent_format)
    if previewer is None:
        return lambda latents: None
    return lambda latents: previewer.decode_latent_to_preview_image("JPEG", latents)[1]


def encode_prompt(clip: Any, text: str) -> tuple[Tensor, Tensor | None]:
    """Tokens (1, n, d) and pooled (1, d) of a prompt, as CLIP Text Encode makes them."""
    tokens, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return tokens, pooled


def conditioning(clip: Any, text: str) -> Any:
    """CONDITIONING of a prompt, as CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
