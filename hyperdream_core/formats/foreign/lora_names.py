"""How other programs name the tensors of a LoRA, and which kinds of adapter their names give away.

| dialect | a layer's key | its factors |
| --- | --- | --- |
| kohya | lora_unet_down_blocks_0_..._attn1_to_q, lora_te_, lora_te1_, lora_te2_ | .lora_down.weight .lora_up.weight |
| old diffusers | unet.down_blocks.0....attn1.processor.to_q | _lora.down.weight _lora.up.weight |
| diffusers | unet.down_blocks.0....attn1.to_q | .lora.down.weight, .lora_linear_layer.down.weight, .lora_A.weight |
| PEFT | base_model.model.down_blocks.0....attn1.to_q | .lora_A.weight .lora_A.default.weight |
| ldm | diffusion_model.input_blocks.1.1....attn1.to_q, lora_unet_input_blocks_1_1_... | any of them |

All of them spell one of two paths, diffusers' or ldm's, so a key is read by taking off prefixes and comparing what is
left without dots. `<layer>.alpha` may stand beside the factors of each dialect; `.lora_mid.weight` is the
kernel of a convolution in three factors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from ...bases import BaseFamily
from ...bases.keys import to_ldm
from ...bases.modules import modules

_FACTOR = re.compile(
    r"(?P<layer>.+?)"
    r"(?:\.lora_(?P<side>down|up|mid|A|B)(?:\.(?P<adapter>[^.]+))?|(?:\.lora_linear_layer|\.lora|_lora)\.(?P<old>down|up))"
    r"\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:\.lora_linear_layer|\.lora|_lora)?\.alpha")
_SIDES = {"A": "down", "B": "up"}

_OTHER_KINDS = {
    "LoHa": re.compile(r"\.hada_"),
    "LoKr": re.compile(r"\.lokr_"),
    "DoRA": re.compile(r"\.dora_scale|\.lora_magnitude_vector"),
    "(IA)3": re.compile(r"\.on_input$|\.ia3_l\b|_ia3_l\b"),
    "OFT": re.compile(r"\.oft_|\.boft_"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "VeRA": re.compile(r"\bvera_(lambda|[AB])"),
}
_QUANTISED = re.compile(
    r"\.(weight_scale|scale_weight|absmax|quant_map|quant_state\b.*|SCB|nested_absmax|qweight|qzeros)$"
)

_NEVER_READ = re.compile(
    r"label_emb|add_embedding|time_embed|emb_params|bundle_emb|token_embedding|position_embedding|text_projection"
    r"|embed_tokens|embedding_lora|final_layer_norm|class_embedding"
)
"""layers that trainers put beside the others and that neither the command line nor live guidance changes"""

_PREFIXES = ("base_model_model_", "base_model_", "model_diffusion_model_", "diffusion_model_", "lora_unet_", "unet_")


def part_of_lora(key: str) -> tuple[str, str] | None:
    """The layer that a tensor's key names, with PEFT's name of the adapter if it has one, and the part: down, up, mid
    or alpha; None for what is no part of a plain LoRA."""
    if found := _FACTOR.fullmatch(key):
        side = found["side"] or found["old"]
        # PEFT calls an adapter "default" unless it is told otherwise.
        adapter = found["adapter"] if found["adapter"] not in (None, "default") else ""
        return found["layer"] + (f" ({adapter})" if adapter else ""), _SIDES.get(side, side)
    if found := _ALPHA.fullmatch(key):
        return found["layer"], "alpha"
    return None


def other_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """The name of another kind of adapter and the key that gives it away; None if there is none."""
    for key in keys:
        for kind, pattern in _OTHER_KINDS.items():
            if pattern.search(key):
                return kind, key
        if _QUANTISED.search(key):
            return "quantised LoRA", key
    return None


def looks_like_an_adapter(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a LoRA or another kind of adapter, rather than a checkpoint."""
    keys = list(keys)
    parts = [part_of_lora(key) for key in keys]
    return any(part and part[1] != "alpha" for part in parts) or other_kind(keys) is not None


def is_never_read(layer: str) -> bool:
    """Whether it is one of the layers that are left out of any LoRA: embeddings, of the noise level, size or words."""
    return _NEVER_READ.search(layer) is not None


def canonical_layer(layer: str, family: BaseFamily) -> str | None:
    """The family's own name of the layer that a LoRA's key names; None if the family has none of that name."""
    names = _names(family)
    for form in _without_prefixes(layer):
        if form in names:
            return names[form]
    return None


def _without_prefixes(layer: str) -> list[str]:
    plain = re.sub(r" \(.*\)$", "", layer).replace(".", "_").replace("_processor_", "_")
    plain = plain.removesuffix("_0") if plain.endswith("_to_out_0") else plain
    if "_self_attn_to_" in plain:  # diffusers of early 2023, in text encoders
        plain = re.sub(r"_self_attn_to_(q|k|v|out)$", r"_self_attn_\1_proj", plain)
    forms = [plain]
    while found := next((prefix for prefix in _PREFIXES if forms[-1].startswith(prefix)), None):
        forms.append(forms[-1][len(found) :])
    return forms


@lru_cache(maxsize=8)
def _names(family: BaseFamily) -> dict[str, str]:
    """Any program's spelling, without dots and prefixes -> the canonical name."""
    encoders = {one.name: index for index, one in enumerate(family.text_encoders, start=1)}
    names: dict[str, str] = {}
    for name in modules(family):
        encoder, _, rest = name.partition(".")
        if encoder not in encoders:
            spellings = [name, to_ldm(name, family)]
        else:
            number = encoders[encoder]
            spellings = [name, to_ldm(name, family), f"lora_te{number}_{rest}"]
            if number == 1:
                spellings += [f"lora_te_{rest}", rest]
        for spelling in spellings:
            names[spelling.replace(".", "_").removesuffix("_0" if spelling.endswith("to_out.0") else "")] = name
    return names
