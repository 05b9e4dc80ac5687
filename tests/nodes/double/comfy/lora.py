"""Which names in LoRA files lead to which weights; of kohya's names those that tests use."""

from __future__ import annotations

from typing import Any


def model_lora_keys_unet(model: Any, key_map: dict[str, str]) -> dict[str, str]:
    from hyperdream_core.bases import get_base
    from hyperdream_core.bases.keys import to_kohya, to_ldm

    family = get_base("miniature")
    for name, weight in model.named_parameters():
        if name.startswith("diffusion_model.") and name.endswith(".weight") and weight.dim() > 1:
            layer = name.removeprefix("diffusion_model.").removesuffix(".weight")
            key_map[f"lora_unet_{layer.replace('.', '_')}"] = name
    for one in family.layers("attention+geglu"):
        key_map[to_kohya(one.name, family)] = f"diffusion_model.{to_ldm(one.name, family)}.weight"
    return key_map


def model_lora_keys_clip(model: Any, key_map: dict[str, str]) -> dict[str, str]:
    for name, weight in model.named_parameters():
        if ".layers." in name and name.endswith(".weight") and weight.dim() > 1:
            path = name[name.index("text_model.encoder") :].removesuffix(".weight")
            key_map[f"lora_te_{path.replace('.', '_')}"] = name
    return key_map
