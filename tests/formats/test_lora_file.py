from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperdream_core.bases import BASES, get_base
from hyperdream_core.bases.keys import to_kohya, to_ldm
from hyperdream_core.errors import BaseMismatchError, ConfigError, FileFormatError, OutputError
from hyperdream_core.formats.lora_file import DIALECTS, LoraMetadata, read_lora, write_lora
from hyperdream_core.identity import Identity
from hyperdream_core.models.adapted_linear import live, merged
from hyperdream_core.ops import lidb
from hyperdream_core.ops.lidb import LidbCoefficients
from hyperdream_core.ops.lowrank import LoraPair, delta

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # diffusers' and transformers' imports are not what is tested
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils import logging as diffusers_logging
    from transformers import CLIPTextConfig, CLIPTextModel


def draw_pairs(family: str = "miniature", target_set: str = "attention", rank: int = 2) -> dict[str, LoraPair]:
    """Pairs about as strong as the layers of a freshly initialised network."""
    generator = torch.Generator().manual_seed(0)
    return {
        layer.name: LoraPair(
            down=torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5,
            up=torch.randn(layer.out_features, rank, generator=generator) / rank**0.5,
        )
        for layer in get_base(family).layers(target_set)
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sofia.safetensors"


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    """A real, small Stable Diffusion pipeline of the miniature's shape, untrained."""
    torch.random.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(96, 128, 128, 128),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(vocab_size=99, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    # Some versions deprecate settings of their own default pipeline.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=None,
            unet=unet.requires_grad_(False).train(False),
            scheduler=DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def run_unet(pipeline: StableDiffusionPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 64, generator=generator)
    with torch.no_grad():
        return pipeline.unet(latents, torch.tensor([10, 700]), tokens).sample


def run_text(pipeline: StableDiffusionPipeline) -> Tensor:
    with torch.no_grad():
        return pipeline.text_encoder(torch.tensor([[5, 17, 42, 98]])).last_hidden_state


def text_pairs(pipeline: StableDiffusionPipeline, pairs: dict[str, LoraPair]) -> dict[str, LoraPair]:
    # Newer transformers have flattened CLIPTextModel; canonical names keep the level, as LoRA files do.
    drop = "text_encoder." if hasattr(pipeline.text_encoder, "text_model") else "text_encoder.text_model."
    return {name.removeprefix(drop): pair for name, pair in pairs.items() if name.startswith("text_encoder.")}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_diffusers_loads_the_export_whole_and_computes_what_the_adapter_computes(
    path: Path, pipeline: StableDiffusionPipeline, dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = draw_pairs(target_set="attention+geglu+text")
    write_lora(path, pairs, family="miniature", dialect=dialect, dtype=torch.float32)
    unet_pairs = {name: pair for name, pair in pairs.items() if not name.startswith("text_encoder.")}
    base = run_unet(pipeline)
    with live(pipeline.unet, unet_pairs):
        expected = run_unet(pipeline)
    with merged(pipeline.unet, unet_pairs):
        torch.testing.assert_close(run_unet(pipeline), expected, rtol=0, atol=1e-5)
    with live(pipeline.text_encoder, text_pairs(pipeline, pairs)):
        expected_text = run_text(pipeline)
    assert (expected - base).abs().max() > 0.05

    diffusers_logging.enable_propagation()  # to caplog
    try:
        pipeline.load_lora_weights(str(path), adapter_name="sofia")
    finally:
        diffusers_logging.disable_propagation()

    modules = [*pipeline.unet.named_modules(), *pipeline.text_encoder.named_modules()]
    assert sum(name.endswith("lora_A.sofia") for name, _ in modules) == len(pairs)
    # diffusers warns of unexpected and missing keys; a key it cannot rename raises.
    assert not [record for record in caplog.records if "key" in record.getMessage().lower()]
    # The bound, fp32.
    torch.testing.assert_close(run_unet(pipeline), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(run_text(pipeline), expected_text, rtol=0, atol=1e-5)
    pipeline.set_adapters("sofia", 0.0)
    torch.testing.assert_close(run_unet(pipeline), base, rtol=0, atol=1e-5)


def test_an_identity_is_exported_exactly(path: Path, pipeline: StableDiffusionPipeline) -> None:
    generator, coefficients = torch.Generator().manual_seed(0), {}
    for layer in get_base("miniature").layers("attention"):
        p, a = lidb.basis_sizes(layer.in_features, layer.out_features)
        coefficients[layer.name] = LidbCoefficients(
            torch.randn(1, p, generator=generator) / p**0.5, torch.randn(a, 1, generator=generator)
        )
    identity = Identity(family="miniature", target_set="attention", rank=1, coefficients=coefficients)
    with live(pipeline.unet, identity.expand()):
        expected = run_unet(pipeline)
    write_lora(path, identity.expand(), family="miniature", dtype=torch.float32)
    pipeline.load_lora_weights(str(path))
    torch.testing.assert_close(run_unet(pipeline), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_finds_every_kohya_key_of_the_big_families(family: str) -> None:
    base = get_base(family)
    layers = base.layers("attention+geglu+text")
    state = {
        f"{to_kohya(layer.name, base)}.{ending}": torch.zeros(1)
        for layer in layers
        for ending in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    # It raises on keys that are left over.
    converted, alphas = _convert_non_diffusers_lora_to_diffusers(state)
    unet = {key: value for key, value in converted.items() if key.startswith("unet.")}
    text = {key: value for key, value in converted.items() if not key.startswith("unet.")}
    keys = [*convert_unet_state_dict_to_peft(unet), *convert_state_dict_to_peft(text)]
    found = {key.removesuffix(".lora_A.weight").removeprefix("unet.") for key in keys if ".lora_A." in key}
    assert found == {layer.name for layer in layers}
    assert len(alphas) == len(layers)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", list(BASES))
def test_a_lora_survives_its_file_and_its_family_is_recognised(path: Path, dialect: str, family: str) -> None:
    pairs = draw_pairs(family, rank=1)
    write_lora(path, pairs, family=family, dialect=dialect, dtype=torch.float32)
    found_family, found = read_lora(path)
    assert found_family == family
    assert found.keys() == pairs.keys()
    for name, pair in pairs.items():
        assert torch.equal(found[name].down, pair.down)
        assert torch.equal(found[name].up, pair.up)


def test_alpha_is_folded_into_up(path: Path) -> None:
    pair = draw_pairs(rank=4)["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    key = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"  # an SDXL trainer's spelling
    factors = {f"{key}.lora_down.weight": pair.down, f"{key}.lora_up.weight": pair.up}
    save_file(factors | {f"{key}.alpha": torch.tensor(1.0)}, path)
    _, found = read_lora(path, "miniature")
    (name,) = found
    assert to_ldm(name, get_base("miniature")) == "middle_block.1.transformer_blocks.0.attn1.to_q"
    torch.testing.assert_close(delta(found[name]), delta(pair) / 4)


def test_a_good_citizens_metadata(path: Path) -> None:
    about = LoraMetadata(title="Sofía", identifier="sks", class_noun="face", license="CC0-1.0", made_by={"steps": "40"})
    write_lora(path, draw_pairs(rank=2), family="miniature", metadata=about)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    assert facts["ss_base_model_version"] == "sd_v1"
    assert facts["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert (facts["ss_network_module"], facts["ss_network_dim"], facts["ss_network_alpha"]) == (
        "networks.lora",
        "2",
        "2.0",
    )
    assert facts["ss_output_name"] == "sofia"
    assert json.loads(facts["ss_tag_frequency"]) == {"identity": {"sks face": 1}}
    assert facts["modelspec.sai_model_spec"] == "1.0.0"
    assert facts["modelspec.trigger_phrase"] == "sks face"
    assert (facts["modelspec.title"], facts["modelspec.license"]) == ("Sofía", "CC0-1.0")
    assert "a sks face" in facts["modelspec.usage_hint"]
    assert facts["modelspec.hash_sha256"] == "0x" + facts["sshs_model_hash"]
    assert json.loads(facts["hyperdream.made_by"]) == {"steps": "40"}
    write_lora(path, draw_pairs("sdxl", rank=1), family="sdxl")
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    assert facts["ss_base_model_version"] == "sdxl_base_v1-0"
    assert facts["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert "modelspec.thumbnail" not in facts


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(path: Path) -> None:
    pairs = draw_pairs(rank=1)
    name, pair = next(iter(pairs.items()))
    batched = {name: LoraPair(pair.down[None], pair.up[None])}
    with pytest.raises(ConfigError, match="unknown LoRA dialect 'ldm'; known: kohya, diffusers"):
        write_lora(path, pairs, family="miniature", dialect="ldm")
    with pytest.raises(ConfigError, match="has no layers"):
        write_lora(path, {}, family="miniature")
    with pytest.raises(ConfigError, match="per-sample factors"):
        write_lora(path, batched, family="miniature")
    with pytest.raises(BaseMismatchError, match=r"needs \(r, 320\) and \(320, r\)"):
        write_lora(path, pairs, family="sd15")
    with pytest.raises(BaseMismatchError, match="'conv_in' is none of the layers of the miniature"):
        write_lora(path, {"conv_in": pair}, family="miniature")
    with pytest.raises(OutputError, match="NaN or infinite"):
        write_lora(path, {name: LoraPair(pair.down, pair.up * 1e6)}, family="miniature")  # beyond fp16
    assert not path.exists()


KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({"x.hada_w1_a": torch.zeros(1, 128)}, FileFormatError, "is a LoHa .*only plain LoRA is read"),
        ({f"{KEY}.lora_down.weight": torch.zeros(1, 128)}, FileFormatError, "lacks the up factor"),
        (
            {f"{KEY}.lora_down.weight": torch.zeros(1, 128), f"{KEY}.lora_up.weight": torch.zeros(128)},
            FileFormatError,
            r"up factor of shape \(128,\), but a matrix",
        ),
        (
            {f"{KEY}.lora_down.weight": torch.zeros(0, 128), f"{KEY}.lora_up.weight": torch.zeros(128, 0)},
            FileFormatError,
            "but a matrix is expected",
        ),
        (
            {f"{KEY}.lora_down.weight": torch.zeros(1, 99), f"{KEY}.lora_up.weight": torch.zeros(128, 1)},
            BaseMismatchError,
            "fit none of the known base families",
        ),
        (
            {f"lora_unet_conv_in.lora_{side}.weight": torch.ones(1, 1) for side in ("down", "up")},
            BaseMismatchError,
            "fit none of the known base families",
        ),
        ({}, FileFormatError, "holds no tensors"),
    ],
)
def test_a_file_that_is_no_lora_of_ours_is_refused(
    path: Path, tensors: dict[str, Tensor], error: type[Exception], words: str
) -> None:
    save_file(tensors, path)
    with pytest.raises(error, match=words) as caught:
        read_lora(path)
    assert str(caught.value).startswith("sofia.safetensors: ")


def test_a_lora_for_another_base_is_refused_by_layer_and_size(path: Path) -> None:
    write_lora(path, draw_pairs("sd15", rank=1), family="sd15")
    with pytest.raises(BaseMismatchError, match=r"sofia.*has down \(1, 320\).*base 'miniature' needs \(r, 96\)"):
        read_lora(path, "miniature")
