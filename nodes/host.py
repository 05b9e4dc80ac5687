"""Everything the nodes ask of ComfyUI: folders, memory manager, progress bar, models, patches.

No other file of this package knows comfy or folder_paths, but `host_miniature.py`, which builds the miniature, and
`host_guidance.py`, which steps into sampling. The facts that this file rests on were seen in 0.8.0 and 0.28.0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management as memory
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.utils
import folder_paths
import torch
from comfy.weight_adapter import LoRAAdapter
from PIL import Image
from torch import Tensor, nn

from ..hyperdream_core.bases import BaseFamily, detect_family
from ..hyperdream_core.bases.keys import to_ldm
from ..hyperdream_core.errors import BaseMismatchError, Cancelled, ConfigError, FileFormatError
from ..hyperdream_core.ops.lowrank import LoraPair

IDENTITIES = "hyperdream"
LORAS = "loras"
PREDICTORS = "hyperdream_predictors"
_LIVE_KEY = "hyperdream"
_PREVIEW_SIDE = 512


# Folders


def register_folders() -> None:
    """Tell ComfyUI of our model folders; paths that the user's extra_model_paths.yaml names stay and come first."""
    own = Path(folder_paths.models_dir) / "hyperdream"
    _register(IDENTITIES, [own, output_folder("hyperdream")])
    places = [Path(place) for place in folder_paths.get_folder_paths(IDENTITIES)]
    _register(PREDICTORS, [place / "predictors" for place in places if place != output_folder("hyperdream")])


def _register(key: str, places: Sequence[Path]) -> None:
    known, endings = folder_paths.folder_names_and_paths.get(key, ([], set()))
    paths = [*known, *(str(place) for place in places if str(place) not in known)]
    # A folder that only extra_model_paths.yaml named has no endings, which would list every file in it.
    folder_paths.folder_names_and_paths[key] = (paths, {*endings, ".safetensors"})


def output_folder(*parts: str) -> Path:
    """A folder within ComfyUI's output folder, made if it is missing by whoever writes there."""
    return Path(folder_paths.get_output_directory()).joinpath(*parts)


def input_folder() -> Path:
    """Where Load Image looks for pictures."""
    return Path(folder_paths.get_input_directory())


def identity_folders() -> list[Path]:
    """Where identities lie, in the order in which ComfyUI looks for them."""
    return [Path(place) for place in folder_paths.get_folder_paths(IDENTITIES)]


def routes() -> Any:
    """The server's table of routes, which packs may add to while they are loaded."""
    from server import PromptServer

    return PromptServer.instance.routes


def identity_names() -> list[str]:
    """Names of the saved identities, relative to their folders; no file is opened for it."""
    names = folder_paths.get_filename_list(IDENTITIES)
    return [name for name in names if Path(name).parts[0] != "predictors"]


def predictor_names() -> list[str]:
    """Names of the predictors' files, relative to their folders."""
    return list(folder_paths.get_filename_list(PREDICTORS))


def lora_names() -> list[str]:
    """Names of the LoRA files that ComfyUI's own loader offers."""
    return [name for name in folder_paths.get_filename_list(LORAS) if name.endswith(".safetensors")]


def stored_file(key: str, name: str) -> Path:
    """The file of that name in one of the folders of `key`.

    Raises:
        FileFormatError: there is none; a name that leads out of the folders counts as such.
    """
    path = folder_paths.get_full_path(key, name) if name else None
    if path is None:
        places = ", ".join(folder_paths.get_folder_paths(key))
        raise FileFormatError(
            name or "(nothing chosen)",
            f"there is no such file in {places}; save or copy it there, refresh ComfyUI, and choose it again",
        )
    return Path(path)


def face_model_folders() -> tuple[Path, ...]:
    """Where users of ComfyUI keep insightface's packs."""
    places = folder_paths.folder_names_and_paths.get("insightface", ([], set()))[0]
    return (*(Path(place) for place in places), Path(folder_paths.models_dir) / "insightface")


# Tensors, progress and interrupts


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Leave inference mode, without gradients: the core keeps tensors, and training on them fails on inference ones."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Bar:
    """The node's progress bar, and the Stop button."""

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)

    def __call__(self, step: int, total: int, preview: Image.Image | None = None) -> None:
        """Show progress, with a picture if there is one.

        Raises:
            Cancelled: the user has pressed Stop.
        """
        shown = None if preview is None else ("JPEG", preview, _PREVIEW_SIDE)
        self._bar.update_absolute(step, total, shown)
        with stop_as_cancelled():
            memory.throw_exception_if_processing_interrupted()


@contextmanager
def stop_as_cancelled() -> Iterator[None]:
    """Turn ComfyUI's interrupt, which its layers raise wherever they are, into the core's Cancelled."""
    try:
        yield
    except memory.InterruptProcessingException as stop:
        raise Cancelled("stopped by the user") from stop


def stop_prompt() -> None:
    """End the running prompt as the Stop button does; called once what was made is safe."""
    raise memory.InterruptProcessingException


# Models


def unet_of(model: Any) -> nn.Module:
    """The UNet in a MODEL."""
    unet: nn.Module = model.model.diffusion_model
    return unet


def family_of(model: Any) -> BaseFamily:
    """The base family of a MODEL, by the shapes of its weights.

    Raises:
        BaseMismatchError: none of those we know, such as a diffusion transformer or an inpainting model.
    """
    return detect_family({name: tuple(weight.shape) for name, weight in unet_of(model).named_parameters()})


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


def prediction_type_of(model: Any) -> str:
    """`epsilon` or `v_prediction`.

    Raises:
        BaseMismatchError: a MODEL that was set to sample in another way.
    """
    sampling = model.get_model_object("model_sampling")
    kinds = type(sampling).__bases__
    if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
        if comfy.model_sampling.V_PREDICTION in kinds:
            return "v_prediction"
        if comfy.model_sampling.EPS in kinds:
            return "epsilon"
    raise BaseMismatchError(
        f"the MODEL samples as {' and '.join(kind.__name__ for kind in kinds)}, but Stable Diffusion's noise schedule "
        "is needed; connect the MODEL straight from its loader"
    )


def alphas_cumprod_of(model: Any) -> Tensor:
    """alpha_bar (timesteps,) float32 on the CPU, from the MODEL's noise levels."""
    sigmas = model.get_model_object("model_sampling").sigmas.detach().to("cpu", torch.float64)
    return (1.0 / (sigmas.square() + 1.0)).float()


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


# Applying


def with_patches(model: Any, pairs: Mapping[str, LoraPair], family: BaseFamily, strength: float) -> Any:
    """A clone of the MODEL whose weights will be W + strength * up @ down, by the stock LoRA adapter."""
    clone = model.clone()
    _add(clone, {f"diffusion_model.{to_ldm(name, family)}.weight": pair for name, pair in pairs.items()}, strength)
    return clone


def clip_with_patches(clip: Any, pairs: Mapping[str, LoraPair], family: BaseFamily, strength: float) -> Any:
    """A clone of the CLIP likewise; pairs under the core's names of text encoder layers."""
    return clip_with_weights(clip, {text_weight(name, family): pair for name, pair in pairs.items()}, strength)


def clip_with_weights(clip: Any, pairs: Mapping[str, LoraPair], strength: float) -> Any:
    """The same with the names that weights have within a CLIP's own module."""
    clone = clip.clone()
    _add(clone, pairs, strength)
    return clone


def lora_places(model: Any, clip: Any) -> dict[str, str]:
    """Layer in a LoRA file -> the weight that ComfyUI's own loader changes, `diffusion_model....` or the CLIP's."""
    places: dict[str, str] = comfy.lora.model_lora_keys_unet(model.model, {})
    texts: dict[str, str] = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    return {**places, **texts}


def _add(clone: Any, pairs: Mapping[str, LoraPair], strength: float) -> None:
    # Without alpha the adapter's own scale is 1.
    patches = {key: LoRAAdapter(set(), (p.up, p.down, None, None, None, None)) for key, p in pairs.items()}
    taken = clone.add_patches(patches, strength)
    missing = sorted(set(patches) - set(taken))
    if missing:
        raise BaseMismatchError(
            f"{len(missing)} of {len(patches)} layers of the identity are not in this model, such as {missing[0]!r}; "
            "connect MODEL and CLIP of a checkpoint of the identity's family"
        )


def options_of_call(arguments: Sequence[Any], named: Mapping[str, Any], entry: str) -> Mapping[str, Any]:
    """The transformer options among a UNet call's arguments, which come by name or by place; empty without `entry`."""
    options = named.get("transformer_options") or next(
        (one for one in arguments if isinstance(one, dict) and entry in one), {}
    )
    return options if entry in options else {}


def with_wrapper(model: Any, wrapper: Callable[..., Any]) -> Any:
    """A clone of the MODEL that calls `wrapper(executor, *arguments)` around every call of its UNet."""
    clone = model.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, _LIVE_KEY, wrapper)
    return clone


def _text_layer(name: str, family: BaseFamily) -> str:
    """Where a CLIP keeps a text encoder's layer."""
    encoder = next(one for one in family.text_encoders if name.startswith(f"{one.name}."))
    only = len(family.text_encoders) == 1
    part = ("clip_h" if only else "clip_g") if encoder.is_open_clip else "clip_l"
    return f"{part}.transformer.{name[len(encoder.name) + 1 :]}"


def text_weight(name: str, family: BaseFamily) -> str:
    """The name of a text encoder layer's weight within a CLIP's own module."""
    return f"{_text_layer(name, family)}.weight"


def text_layers(pairs: Mapping[str, LoraPair], family: BaseFamily) -> dict[str, LoraPair]:
    """The pairs under the names that layers have within a CLIP's own module."""
    return {_text_layer(name, family): pair for name, pair in pairs.items()}


# Training


def trainable(model: Any) -> Any:
    """The MODEL as a patcher whose weights stay in place while it is trained on.

    Raises:
        ConfigError: ComfyUI streams its weights and cannot make a clone that does not.
    """
    if not getattr(model, "is_dynamic", lambda: False)():
        return model
    try:
        return model.clone(disable_dynamic=True)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"ComfyUI streams this model's weights and cannot keep them in place for polishing ({error}); load it with "
            "Load Checkpoint, or start ComfyUI with --disable-dynamic-vram"
        ) from error


def load_for_training(patcher: Any, bytes_needed: float) -> None:
    """Bring the whole MODEL to its device with room beside it, and make its weights ones that gradients pass.

    Weights loaded within inference mode are replaced by equal clones, one at a time, and may stay so.
    """
    memory.load_models_gpu([patcher], memory_required=bytes_needed, force_full_load=True)
    leave_inference_mode(unet_of(patcher))


def leave_inference_mode(network: nn.Module) -> None:
    """Replace a network's inference tensors by clones, one by one."""
    for name, weight in list(network.named_parameters()):
        if weight.is_inference():
            comfy.utils.set_attr_param(network, name, weight.clone())


def room_beside(patcher: Any) -> float:
    """Memory (bytes) that is or can be made free on the patcher's device, once its own weights are there."""
    device = patcher.load_device
    free = float(memory.get_free_memory(device))
    if device.type == "cpu":
        # There the weights are already, and nothing that is unloaded gives memory back.
        return free
    others = sum(one.model_loaded_memory() for one in memory.current_loaded_models if one.device == device)
    return free + others - float(patcher.model_size())


def say(text: str) -> None:
    """A line in ComfyUI's log."""
    logging.info(text)


def tidy_up() -> None:
    """Give back what torch holds for nothing."""
    memory.soft_empty_cache()


def latent_preview(patcher: Any) -> Callable[[Tensor], Image.Image | None]:
    """ComfyUI's quick look at latents (1, c, h, w), as the user has set it; nothing where previews are off."""
    import latent_preview as previews

    previewer = previews.get_previewer(patcher.load_device, patcher.model.latent_format)
    if previewer is None:
        return lambda latents: None
    return lambda latents: previewer.decode_latent_to_preview_image("JPEG", latents)[1]


def is_small(vae: Any) -> bool:
    """Whether decoding with a VAE moves nothing of weight: under 64 MB."""
    return bool(vae.model_size() < 64e6)


def encode_prompt(clip: Any, text: str) -> tuple[Tensor, Tensor | None]:
    """Tokens (1, n, d) and pooled (1, d) of a prompt, as CLIP Text Encode makes them."""
    tokens, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return tokens, pooled


def conditioning(clip: Any, text: str) -> Any:
    """CONDITIONING of a prompt, as CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
