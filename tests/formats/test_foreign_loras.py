"""LoRAs of other programs: every dialect gives the same change, and what is no plain LoRA is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hyperdream_core.bases import get_base
from hyperdream_core.bases.keys import to_kohya, to_ldm
from hyperdream_core.bases.modules import modules
from hyperdream_core.errors import BaseMismatchError, FileFormatError
from hyperdream_core.formats.container import read_names
from hyperdream_core.formats.foreign.lora_names import looks_like_an_adapter
from hyperdream_core.formats.lora_file import LoraFile, LoraMetadata, read_lora_file, write_lora
from hyperdream_core.ops.lowrank import LoraPair, delta

BASE = get_base("miniature")
QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
TEXT = "text_encoder.text_model.encoder.layers.1.self_attn.v_proj"
LAYERS = (QUERY, OUT, TEXT)
RANK = 3


def factors(name: str, family: str = "miniature", rank: int = RANK) -> tuple[Tensor, Tensor]:
    module = modules(get_base(family))[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return (
        torch.randn(rank, module.inputs, generator=generator),
        torch.randn(module.outputs, rank, generator=generator),
    )


def save(path: Path, key: Callable[[str], str], ends: tuple[str, str], layers: tuple[str, ...] = LAYERS) -> None:
    tensors = {}
    for name in layers:
        for end, factor in zip(ends, factors(name), strict=True):
            tensors[key(name) + end] = factor
    save_file(tensors, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "style.safetensors"


def old_processor(name: str) -> str:
    if name.startswith("text_encoder"):
        return name.replace("v_proj", "to_v")
    block, _, projection = name.removesuffix(".0").rpartition(".")
    return f"unet.{block}.processor.{projection}"


def unet(name: str) -> str:
    return name if name.startswith("text_encoder") else f"unet.{name}"


def peft(name: str) -> str:
    return f"base_model.model.{name.removeprefix('text_encoder.')}"


def ldm(name: str) -> str:
    return name if name.startswith("text_encoder") else f"diffusion_model.{to_ldm(name, BASE)}"


def kohya_ldm(name: str) -> str:
    text = name.startswith("text_encoder")
    return to_kohya(name, BASE) if text else "lora_unet_" + to_ldm(name, BASE).replace(".", "_")


DIALECTS = {
    "kohya": (lambda name: to_kohya(name, BASE), (".lora_down.weight", ".lora_up.weight")),
    "kohya of SDXL": (lambda name: to_kohya(name, BASE).replace("lora_te_", "lora_te1_"),
                      (".lora_down.weight", ".lora_up.weight")),
    "kohya in ldm": (kohya_ldm, (".lora_down.weight", ".lora_up.weight")),
    "old processors": (old_processor, ("_lora.down.weight", "_lora.up.weight")),
    "lora.down": (unet, (".lora.down.weight", ".lora.up.weight")),
    "linear layer": (unet, (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")),
    "diffusers": (unet, (".lora_A.weight", ".lora_B.weight")),
    "PEFT": (peft, (".lora_A.weight", ".lora_B.weight")),
    "PEFT, default": (peft, (".lora_A.default.weight", ".lora_B.default.weight")),
    "ldm": (ldm, (".lora_down.weight", ".lora_up.weight")),
    "ldm, A": (ldm, (".lora_A.weight", ".lora_B.weight")),
}  # fmt: skip


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_every_dialect_names_the_same_layers(path: Path, dialect: str) -> None:
    save(path, *DIALECTS[dialect])
    found = read_lora_file(path, "miniature")
    assert found.pairs.keys() == set(LAYERS) and not found.left_out and not found.note
    for name in LAYERS:
        down, up = factors(name)
        assert torch.equal(found.pairs[name].down, down) and torch.equal(found.pairs[name].up, up)
    assert looks_like_an_adapter(read_names(path)[1])


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "miniature"])
def test_every_layer_of_a_trainers_default_network_is_read(path: Path, family: str) -> None:
    base = get_base(family)
    tensors = {}
    for name, module in modules(base).items():
        key = to_kohya(name, base)
        is_wide = module.inputs % 9 == 0 and "conv" in name and "shortcut" not in name
        kernel = (3, 3) if is_wide else (1, 1) if "proj_in" in name else ()
        inputs = module.inputs // 9 if is_wide else module.inputs
        tensors[f"{key}.lora_down.weight"] = torch.zeros(1, inputs, *kernel, dtype=torch.float16)
        tensors[f"{key}.lora_up.weight"] = torch.zeros(module.outputs, 1, *(1 for _ in kernel), dtype=torch.float16)
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    found = read_lora_file(path)
    assert found.family == family and found.pairs.keys() == modules(base).keys()


def test_a_convolution_of_two_and_of_three_factors_changes_what_their_kernels_say(path: Path) -> None:
    name, generator = "down_blocks.0.resnets.0.conv1", torch.Generator().manual_seed(1)
    key, channels = to_kohya(name, BASE), modules(BASE)[name].inputs // 9
    narrow = torch.randn(2, channels, 1, 1, generator=generator)
    kernel = torch.randn(2, 2, 3, 3, generator=generator)
    up = torch.randn(modules(BASE)[name].outputs, 2, 1, 1, generator=generator)
    picture = torch.randn(1, channels, 5, 4, generator=generator)
    wanted = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(picture, narrow), kernel, padding=1), up)
    three = {f"{key}.lora_down.weight": narrow, f"{key}.lora_mid.weight": kernel, f"{key}.lora_up.weight": up}
    wide = nn.functional.conv2d(kernel, narrow[:, :, 0, 0].T[:, :, None, None].contiguous())
    two = {f"{key}.lora_down.weight": wide, f"{key}.lora_up.weight": up}
    for tensors in (three, two):
        save_file(tensors, path)
        pair = read_lora_file(path, "miniature").pairs[name]
        weight = delta(pair).view(-1, channels, 3, 3)
        found = nn.functional.conv2d(picture, weight, padding=1)
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_of_any_type_is_folded(path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    down, up = factors(QUERY)
    key = to_kohya(QUERY, BASE)
    alpha = torch.full(shape, 6.0).to(dtype)
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}, path)
    torch.testing.assert_close(read_lora_file(path, "miniature").pairs[QUERY].up, 2 * up)


PEFT_CASES = [
    ({"unet.r": RANK, "unet.lora_alpha": 6}, 2.0),
    ({"unet.r": RANK, "unet.lora_alpha": 6, "unet.use_rslora": True}, 6 / RANK**0.5),
    ({"unet.lora_alpha": 6, "unet.alpha_pattern": {QUERY: 12}}, 4.0),
    ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 3}, "unet.use_rslora": True}, 3 / RANK**0.5),
    ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"^" + QUERY.replace(".", r"\.") + "$": 9}}, 3.0),
    ({"unet.lora_alpha": 6, "unet.r": 99, "unet.rank_pattern": {"attn1.to_q": RANK}}, 2.0),
    ({"lora_alpha": 6}, 2.0),
    ({"text_encoder.lora_alpha": 6}, 1.0),
    ({}, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "scale"), PEFT_CASES)
def test_what_peft_says_once_for_all_layers_is_folded(path: Path, facts: dict[str, object], scale: float) -> None:
    down, up = factors(QUERY)
    tensors = {f"unet.{QUERY}.lora_A.weight": down, f"unet.{QUERY}.lora_B.weight": up}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(facts)})
    torch.testing.assert_close(read_lora_file(path, "miniature").pairs[QUERY].up, scale * up)


def test_kohyas_alpha_for_the_whole_network_counts_where_layers_do_not_say(path: Path) -> None:
    wide = "down_blocks.0.resnets.0.conv1"
    down, up = factors(QUERY)
    inner, outer = factors(wide)
    key, other = to_kohya(QUERY, BASE), to_kohya(wide, BASE)
    tensors = {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
        f"{other}.lora_down.weight": inner.view(RANK, -1, 3, 3),
        f"{other}.lora_up.weight": outer[:, :, None, None],
    }
    facts = {"ss_network_alpha": "1.5", "ss_network_args": json.dumps({"conv_alpha": "6"})}
    save_file(tensors, path, facts)
    pairs = read_lora_file(path, "miniature").pairs
    torch.testing.assert_close(pairs[QUERY].up, up / 2)
    torch.testing.assert_close(pairs[wide].up, 2 * outer)
    save_file(tensors | {f"{key}.alpha": torch.tensor(3)}, path, facts)
    torch.testing.assert_close(read_lora_file(path, "miniature").pairs[QUERY].up, up)


@pytest.mark.parametrize(
    "facts",
    [
        {"lora_adapter_metadata": "{"},
        {"lora_adapter_metadata": "[1]"},
        {"lora_adapter_metadata": "[" * 100_000},
        {"lora_adapter_metadata": '{"unet.lora_alpha": "much"}'},
        {"lora_adapter_metadata": '{"unet.lora_alpha": Infinity}'},
        {"lora_adapter_metadata": '{"unet.lora_alpha": [1]}'},
        {"ss_network_alpha": "nan"},
        {"ss_network_args": '{"conv_alpha": "x"}'},
    ],
)
def test_metadata_that_cannot_be_meant_is_refused(path: Path, facts: dict[str, str]) -> None:
    down, up = factors(QUERY)
    save_file({f"unet.{QUERY}.lora_A.weight": down, f"unet.{QUERY}.lora_B.weight": up}, path, facts)
    with pytest.raises(FileFormatError, match=r"style\.safetensors: has "):
        read_lora_file(path, "miniature")


def plain() -> dict[str, Tensor]:
    down, up = factors(QUERY)
    return {f"{to_kohya(QUERY, BASE)}.lora_{side}.weight": one for side, one in (("down", down), ("up", up))}


@pytest.mark.parametrize(
    "extra",
    [
        "bundle_emb.mara.string_to_param.*",
        "emb_params",
        "lora_unet_label_emb_0_0.lora_down.weight",
        "lora_unet_time_embed_0.lora_up.weight",
        "lora_te_text_model_embeddings_token_embedding.lora_down.weight",
        "lora_unet_conv_in.diff_b",
        "lora_unet_down_blocks_0_resnets_0_norm1.w_norm",
    ],
)
def test_what_is_no_plain_factor_of_our_layers_is_left_out_and_said(path: Path, extra: str) -> None:
    save_file(plain() | {extra: torch.zeros(2, 4)}, path)
    found = read_lora_file(path, "miniature")
    assert set(found.pairs) == {QUERY} and found.left_out == (extra,)
    assert found.note.startswith("left out of the LoRA: 1 that") and extra in found.note


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("x.hada_w1_a", "LoHa"),
        ("x.lokr_w1", "LoKr"),
        ("x.dora_scale", "DoRA"),
        ("x.lora_magnitude_vector.default.weight", "DoRA"),
        ("x.on_input", r"\(IA\)3"),
        ("x.ia3_l", r"\(IA\)3"),
        ("x.oft_blocks", "OFT"),
        ("x.oft_diag", "OFT"),
        ("x.a1.weight", "GLoRA"),
        ("x.lora_down.weight_scale", "quantised LoRA"),
    ],
)
def test_other_kinds_of_adapter_are_refused_by_name(path: Path, key: str, kind: str) -> None:
    save_file(plain() | {key: torch.zeros(1, 1)}, path)
    with pytest.raises(FileFormatError, match=rf"is a {kind} \(it holds '{key}'\), but only plain LoRA is read"):
        read_lora_file(path)
    assert looks_like_an_adapter([key])


def test_whole_numbers_as_factors_are_refused_as_quantised(path: Path) -> None:
    save_file({name: tensor.to(torch.int8) for name, tensor in plain().items()}, path)
    with pytest.raises(FileFormatError, match=r"holds I8 numbers.*saved unquantised"):
        read_lora_file(path)


@pytest.mark.parametrize("second", [to_kohya(QUERY, BASE), f"unet.{QUERY}", f"base_model.model.{QUERY}", ldm(QUERY)])
@pytest.mark.parametrize("first", [f"diffusion_model.{QUERY}", kohya_ldm(QUERY)])
def test_a_layer_named_in_two_dialects_is_refused(path: Path, first: str, second: str) -> None:
    down, up = factors(QUERY)
    tensors = {f"{key}.lora_{side}.weight": one.clone() for key in (first, second)
               for side, one in (("down", down), ("up", up))}  # fmt: skip
    save_file(tensors, path)
    with pytest.raises(FileFormatError, match=rf"changes the layer '{QUERY}' twice, as .* and as "):
        read_lora_file(path)


def test_two_tensors_for_one_factor_and_two_adapters_are_refused(path: Path) -> None:
    down, up = factors(QUERY)
    sides = {f"{QUERY}.lora_A.weight": down, f"{QUERY}.lora_B.weight": up}
    save_file(sides | {f"{QUERY}.lora_A.default.weight": 2 * down}, path)
    with pytest.raises(FileFormatError, match="has two tensors for one factor"):
        read_lora_file(path)
    save_file(sides | {f"{QUERY}.lora_A.other.weight": 2 * down, f"{QUERY}.lora_B.other.weight": up.clone()}, path)
    with pytest.raises(FileFormatError, match="twice"):
        read_lora_file(path)


def test_a_lora_of_another_architecture_is_refused(path: Path) -> None:
    tensors = {f"transformer.blocks.{i}.attn.to_q.lora_{s}.weight": torch.ones(4, 4) for i in range(3) for s in "AB"}
    save_file(tensors, path)
    with pytest.raises(BaseMismatchError, match="fit none of the known base families"):
        read_lora_file(path)
    with pytest.raises(BaseMismatchError, match=r"3 of its 3 layers, such as .*are none of Stable Diffusion XL"):
        read_lora_file(path, "sdxl")


def read_with(path: Path, metadata: dict[str, str]) -> LoraFile:
    save_file(plain(), path, metadata)
    return read_lora_file(path, "miniature")


def test_trigger_phrases_are_neither_split_nor_invented(path: Path) -> None:
    for phrase in ("ohwx, woman", "a photograph of ohwx woman in the rain", "ohwx"):
        found = read_with(path, {"modelspec.trigger_phrase": phrase})
        assert found.trigger_phrases == (phrase,) and found.identifier == found.class_noun == ""
    assert read_with(path, {"modelspec.trigger_phrase": "a\x1b[2Jb\nc"}).trigger_phrases == ("a [2Jb c",)
    tags = json.dumps({"10_ohwx woman": {"ohwx woman": 20}})
    for facts in ({"ss_tag_frequency": tags}, {"modelspec.trigger_phrase": "  "}, {"format": "pt"}):
        assert read_with(path, facts).trigger_phrases == ()


def test_only_our_own_files_say_which_word_is_the_identifier(path: Path) -> None:
    pair = LoraPair(*factors(QUERY))
    about = LoraMetadata(identifier="ohwx", class_noun="small dog")
    write_lora(path, {QUERY: pair}, family="miniature", metadata=about)
    found = read_lora_file(path)
    assert (found.identifier, found.class_noun, found.trigger_phrases) == ("ohwx", "small dog", ("ohwx small dog",))
    ours = {"hyperdream.family": "miniature", "ss_tag_frequency": '{"identity": {"sks face": 1}}'}
    old = read_with(path, {**ours, "modelspec.trigger_phrase": "sks face"})
    assert (old.identifier, old.class_noun) == ("sks", "face")
    changed = read_with(path, {**ours, "modelspec.trigger_phrase": "ohwx, woman"})
    assert (changed.identifier, changed.trigger_phrases) == ("", ("ohwx, woman",))
