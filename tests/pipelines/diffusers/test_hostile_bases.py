"""Checkpoints and folders that are not what they should be: refused from their headers, by name and with a remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hyperdream_core.bundled import bundled_weights
from hyperdream_core.cli.commands.inspect import format_report, inspect_file
from hyperdream_core.errors import BaseMismatchError, FileFormatError
from hyperdream_core.pipelines.diffusers.folder import load_vae
from hyperdream_core.pipelines.diffusers.loading import base_family, load_base
from hyperdream_core.pipelines.diffusers.single_file import describe_file
from hyperdream_core.pipelines.diffusers.weights import WeightFiles

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def changed(single_file: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A checkpoint with its tensors changed."""

    def write(change: Change) -> Path:
        tensors = load_file(single_file)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "odd.safetensors")
        return tmp_path / "odd.safetensors"

    return write


@pytest.fixture
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor may be read."""
    monkeypatch.setattr(WeightFiles, "opened", lambda self: pytest.fail("a tensor was read"))


def shape(name: str, *sizes: int) -> Change:
    return lambda tensors: tensors.update({name: torch.zeros(sizes)})


def lacks(*names: str) -> Change:
    return lambda tensors: [tensors.pop(name) for name in names]


@pytest.mark.usefixtures("nothing_read")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shape(UNET + "time_embed.0.weight", 3, 3), r"'model.*time_embed.0.weight' of shape \(384, 96\), but it has"),
        (shape(UNET + "out.2.weight"), r"'model.*out.2.weight' of shape .*, but it has '\(\)'"),
        (lacks(UNET + "middle_block.1.proj_in.weight"), "proj_in.weight' of shape .*, but it is missing"),
        (shape(UNET + "middle_block.1.proj_in.weight", 7), "proj_in.weight' of shape"),
        (shape(UNET + "label_emb.0.0.weight"), "holds 'model.diffusion_model.label_emb.0.0.weight', which"),
        (shape(UNET + "input_blocks.99.0.x", 1), "holds 'model.diffusion_model.input_blocks.99.0.x', which"),
        (lacks(VAE + "post_quant_conv.weight"), "post_quant_conv.weight' of shape"),
        (
            lacks(VAE + "encoder.down.2.block.0.conv1.weight"),
            "down.2.block.0.conv1.weight' of.*convolution is",
        ),
        (shape(VAE + "encoder.down.0.block.0.conv1.weight"), "down.0.block.0.conv1.weight' of shape.*convolution"),
        (shape(VAE + "encoder.down.0.block.0.conv1.weight", 33, 3, 3, 3), "makes no network"),
        (shape(VAE + "encoder.down.4.block.0.conv1.weight", 1), "a VAE with the levels '0, 1, 2, 3, 4', but 0 to 3"),
        (shape(VAE + "encoder.down.x.y", 1), "a VAE with the levels"),
        (shape(VAE + "encoder.down.0.block.0.nin_shortcut.weight", 1), "nin_shortcut.weight', which"),
        (shape(VAE + "encoder.mid.attn_1.q.weight", 64, 64, 2, 2), "attn_1.q.weight' of shape"),
        (shape(VAE + "decoder.up_blocks.0.0.conv.weight", 4, 4, 3, 3), "a VAE with the levels"),
        (shape(TEXT + "final_layer_norm.bias", 63), "final_layer_norm.bias' of shape"),
        (lacks(TEXT + "encoder.layers.1.mlp.fc1.bias"), "fc1.bias' of shape .*, but it is missing"),
        (
            lambda tensors: tensors.update({f"{VAE}encoder.down.{n}.block.{n}.x": torch.zeros(0) for n in range(3000)}),
            "lev",
        ),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_before_anything_is_read(
    changed: Callable[[Change], Path], change: Change, words: str
) -> None:
    with pytest.raises(FileFormatError, match=rf"^odd\.safetensors: .*{words}"):
        load_base(changed(change))


def test_of_many_tensors_that_do_not_fit_the_first_are_named_and_the_rest_counted(
    changed: Callable[[Change], Path],
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(UNET) and name.endswith("norm3.bias")]:
            del tensors[name]

    with pytest.raises(FileFormatError, match=r"(needs '.*norm3.bias' of shape .*){3}; and \d+ more\. Use an ordinary"):
        load_base(changed(change))


def test_attention_of_no_rank_is_none_of_a_known_family(tmp_path: Path) -> None:
    names = [f"{UNET}input_blocks.1.1.transformer_blocks.0.attn{n}.to_k.weight" for n in (1, 2)]
    save_file({name: torch.tensor(1.0) for name in names}, tmp_path / "flat.safetensors")
    with pytest.raises(BaseMismatchError, match="2 attention layers"):
        load_base(tmp_path / "flat.safetensors")


def test_what_a_vae_was_trained_against_may_lie_beside_it(changed: Callable[[Change], Path]) -> None:
    file = changed(shape(VAE + "loss.discriminator.main.0.weight", 2, 2))
    assert load_base(file).family.name == "miniature"


def test_a_header_of_more_tensors_than_any_base_has_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "many.safetensors"
    save_file({f"{VAE}encoder.down.{n}.x": torch.zeros(0) for n in range(100_001)}, file)
    with pytest.raises(FileFormatError, match="holds 100,001 tensors, but at most 100,000 are expected"):
        base_family(file)


def test_names_without_end_are_gone_through_once(changed: Callable[[Change], Path]) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for kind in ("input_blocks", "output_blocks", "middle_block"):
            tensors.update({f"{UNET}{kind}.{n}.0.in_layers.0.weight": torch.zeros(0) for n in range(1000, 20_000)})

    with pytest.raises(FileFormatError, match=r"holds 'model.*1000.*', which its UNet2DConditionModel has not"):
        load_base(changed(change))


@pytest.mark.usefixtures("nothing_read")
@pytest.mark.parametrize(
    ("part", "entries", "words"),
    [
        (
            "unet",
            {"block_out_channels": [96, 128, 128, 256]},
            "config.json: says block_out_channels .*are a UNet of",
        ),
        ("unet", {"block_out_channels": [96] * 15}, "says block_out_channels"),
        ("unet", {"layers_per_block": 2}, "says layers_per_block '2', but .* which has 1"),
        ("unet", {"layers_per_block": [1, 1, 1, 2]}, "says layers_per_block"),
        ("unet", {"cross_attention_dim": 768}, "says cross_attention_dim"),
        ("unet", {"attention_head_dim": 16}, "says attention_head_dim"),
        ("unet", {"transformer_layers_per_block": [64, 64, 64, 64]}, "says transformer_layers_per_block"),
        ("unet", {"in_channels": 9}, "says in_channels"),
        ("unet", {"norm_num_groups": 7}, "says norm_num_groups"),
        ("unet", {"act_fn": "evil"}, "says act_fn 'evil', but .* which has silu"),
        ("unet", {"flip_sin_to_cos": False}, "says flip_sin_to_cos"),
        ("unet", {"freq_shift": False}, "says freq_shift"),
        ("unet", {"class_embed_type": "identity"}, "says class_embed_type"),
        ("unet", {"norm_eps": float("nan")}, "beyond all bases|says norm_eps"),
        ("unet", {"time_embedding_dim": 32}, "'time_embedding.linear_1.weight' of shape .32, 96., but it has"),
        ("unet", {"down_block_types": ["DownBlock2D"] * 4}, "of its configuration|has not"),
        ("unet", {"down_block_types": []}, "makes no network"),
        ("vae", {"block_out_channels": [8, 8, 8, 16]}, "needs '.*' of shape .*, but it"),
        ("vae", {"block_out_channels": [8, 8]}, "4 widths are expected"),
        ("vae", {"block_out_channels": 8}, "4 widths are expected|makes no network"),
        ("vae", {"layers_per_block": 3}, "needs '.*' of shape .*, but it is missing"),
        ("vae", {"latent_channels": 4}, "says latent_channels '4', but"),
        ("vae", {"latent_channels": None}, "makes no network"),
        ("vae", {"scaling_factor": 0}, "says scaling_factor '0', but 0.001 to 1000"),
        ("vae", {"scaling_factor": "big"}, "says scaling_factor"),
        ("vae", {"shift_factor": 0.1}, "says shift_factor"),
        ("text_encoder", {"hidden_size": 128}, "says hidden_size '128', but .* which has 64"),
        ("text_encoder", {"num_attention_heads": 8}, "says num_attention_heads"),
        ("text_encoder", {"num_hidden_layers": 3}, "encoder.layers.2.* of shape .*, but it is missing"),
        ("text_encoder", {"vocab_size": 100}, "token_embedding.weight' of shape .100, 64., but it has"),
        ("text_encoder", {"hidden_act": "evil"}, "says hidden_act"),
        ("text_encoder", {"max_position_embeddings": "x"}, "makes no network"),
    ],
)
def test_a_configuration_that_is_not_of_its_weights_is_refused_before_anything_is_read(
    part: str, entries: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "base", copy_function=link)
    file = tmp_path / "base" / part / "config.json"
    config = {**json.loads(file.read_text()), **entries}
    file.unlink()
    file.write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match=words):
        load_base(tmp_path / "base")


@pytest.mark.usefixtures("nothing_read")
@pytest.mark.parametrize(
    "entries", [{"decoder_act_fns": ["silu", "silu", "silu", "relu"]}, {"decoder_in_shortcut": False},
                {"decoder_norm_types": 3}, {"encoder_out_shortcut": 0}]
)  # fmt: skip
def test_a_miniature_whose_vae_would_draw_otherwise_is_refused(entries: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    shutil.copytree(bundled_weights() / "miniature" / "base" / "vae", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    (entry,) = entries
    with pytest.raises(FileFormatError, match=rf"says {entry} .*, but the weights beside it are the miniature's VAE"):
        load_vae(folder, torch.float32)


def link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": 1}', "x", '{"!": 1e999}'])
def test_a_tokenizer_that_is_none_is_refused(content: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "base", copy_function=link)
    for file in (tmp_path / "base" / "tokenizer").iterdir():
        file.unlink()
        file.write_text(content)
    with pytest.raises(FileFormatError):
        load_base(tmp_path / "base")


def test_what_the_tokenizers_library_raises_is_a_refusal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the fuzzer, for damaged merges: `Exception: Error while initializing BPE`."""
    from transformers import CLIPTokenizer

    def damaged(*_: object, **__: object) -> None:
        raise Exception("Error while initializing BPE: stream did not contain valid UTF-8")

    monkeypatch.setattr(CLIPTokenizer, "from_pretrained", damaged)
    with pytest.raises(FileFormatError, match="is no tokenizer that can be read"):
        load_base(folder)


def test_tokens_that_the_text_encoder_does_not_know_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "base", copy_function=link)
    place = tmp_path / "base" / "text_encoder"
    weights = load_file(place / "model.safetensors")
    name = next(name for name in weights if name.endswith("token_embedding.weight"))
    weights[name] = weights[name][:1000].contiguous()
    (place / "model.safetensors").unlink()
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").unlink()
    (place / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    with pytest.raises(FileFormatError, match="has tokens up to number 49,407, but the text encoder knows 1,000"):
        load_base(tmp_path / "base")


def test_old_names_of_the_vaes_attention_and_weights_in_pieces_are_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "base", copy_function=link)
    vae, unet = tmp_path / "base" / "vae", tmp_path / "base" / "unet"
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in [name for name in weights if ".attentions." in name]:
        new = name.partition(".attentions.0.")[2].rpartition(".")[0]
        weights[name.replace(new, old.get(new, new))] = weights.pop(name)
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    save_file(weights, vae / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    whole = load_file(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(whole)
    for number, part in enumerate((names[:50], names[50:]), start=1):
        save_file(
            {name: whole[name] for name in part}, unet / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        )
    for one, other in zip(load_base(tmp_path / "base").modules(), load_base(folder).modules(), strict=True):
        weights, others = one.state_dict(), other.state_dict()
        assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def quantised(kind: torch.dtype, *scales: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        matrices = [name for name in tensors if name.startswith(UNET) and tensors[name].dim() == 2]
        for name in matrices:
            tensors[name] = (tensors[name].float() * 8).to(kind)
        tensors.update({scale: torch.ones(1) for scale in scales})

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (quantised(torch.int8), "is quantised: tensor 'model.*' holds I8 numbers, and no scale.*use the file in fp16"),
        (quantised(torch.uint8), "is quantised: tensor 'model.*' holds U8 numbers"),
        (quantised(torch.int8, f"{UNET}out.weight_scale"), "is quantised .*out.weight_scale'.*use the file in fp16"),
        (quantised(torch.float8_e4m3fn, f"{UNET}scaled_fp8"), "is quantised .scaled fp8.*use the file in fp16"),
        (quantised(torch.float8_e4m3fn, f"{UNET}time_embed.0.scale_weight"), "is quantised .scaled fp8"),
        (quantised(torch.uint8, f"{UNET}time_embed.0.weight.absmax"), "is quantised .*4 bits"),
    ],
)
def test_a_quantised_checkpoint_is_refused_by_name_and_inspected_as_one(
    changed: Callable[[Change], Path], change: Change, words: str
) -> None:
    file = changed(change)
    for read in (load_base, describe_file):
        with pytest.raises(FileFormatError, match=rf"^odd\.safetensors: {words}"):
            read(file)


def test_small_floats_that_stand_for_themselves_are_widened(
    changed: Callable[[Change], Path], single_file: Path
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()})

    weight = load_base(changed(change)).unet.conv_in.weight
    assert weight.dtype == torch.float32
    expected = load_file(single_file)[UNET + "input_blocks.0.0.weight"].to(torch.float8_e4m3fn).float()
    torch.testing.assert_close(weight, expected, atol=0, rtol=0)


@pytest.mark.parametrize("prefix", ["", UNET])
def test_a_unet_alone_is_called_so(changed: Callable[[Change], Path], prefix: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        unet = {name: tensor for name, tensor in tensors.items() if name.startswith(UNET)}
        tensors.clear()
        tensors.update({prefix + name.removeprefix(UNET): tensor for name, tensor in unet.items()})

    file = changed(change)
    report = inspect_file(file)
    assert (report["readable"], report["kind"], report["family"]) == (True, "UNet alone", "miniature")
    assert "no base by itself: VAE and text encoders are missing" in format_report(report)
    for ask in (load_base, base_family):
        with pytest.raises(FileFormatError, match=r"is a UNet alone and has .*no VAE.*use the whole checkpoint"):
            ask(file)


def test_an_inpainting_base_is_refused_in_one_sentence_by_all_who_draw_or_polish(
    changed: Callable[[Change], Path], folder: Path, tmp_path: Path
) -> None:
    def wider(weight: Tensor) -> Tensor:
        return torch.cat([weight, weight[:, :1], weight], 1).contiguous()

    first = UNET + "input_blocks.0.0.weight"
    file = changed(lambda tensors: tensors.update({first: wider(tensors[first])}))
    shutil.copytree(folder, tmp_path / "base", copy_function=link)
    place = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(place)
    place.unlink()
    save_file({**weights, "conv_in.weight": wider(weights["conv_in.weight"])}, place, {"format": "pt"})
    for base in (file, tmp_path / "base"):
        for ask in (load_base, base_family):
            with pytest.raises(BaseMismatchError, match=r"takes 65 channels, but 32 are.*use the ordinary checkpoint"):
                ask(base)
        assert "use the ordinary checkpoint" in inspect_file(base)["problem"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_loading_changes_nothing_for_other_threads(
    single_file: Path, folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, register = [], nn.Module.register_parameter
    monkeypatch.setattr(torch, "set_default_dtype", lambda kind: seen.append(f"default {kind}"))
    plain = WeightFiles.of

    def looking(paths: Any) -> WeightFiles:
        seen.extend(["nn.Module"] if nn.Module.register_parameter is not register else [])
        return plain(paths)

    monkeypatch.setattr(WeightFiles, "of", looking)
    for base in (single_file, folder):
        assert load_base(base, dtype=dtype).dtype == dtype
    assert seen == []
