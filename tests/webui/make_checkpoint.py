"""Makes a Stable Diffusion 1.x checkpoint of random weights out of an Automatic1111 install's own classes.

Run by that install's Python: `make_checkpoint.py ROOT FOLDER tiny|true`. `tiny` has 32 channels where 1.x has 320;
`true` has 1.x's shapes in fp16 (2.1 GB). The configuration that A1111 reads and a tokenizer from open_clip are
put beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

TINY = {"model_channels": 32, "context_dim": 64, "vae": 32}


def main(root: Path, folder: Path, size: str) -> None:
    sys.path[:0] = [str(root / "repositories" / "stable-diffusion-stability-ai")]
    from ldm.util import instantiate_from_config
    from transformers import CLIPTextConfig, CLIPTextModel

    config = OmegaConf.load(root / "configs" / "v1-inference.yaml")
    params = config.model.params
    text = CLIPTextConfig()
    if size == "tiny":
        params.unet_config.params.model_channels = TINY["model_channels"]
        params.unet_config.params.context_dim = TINY["context_dim"]
        params.first_stage_config.params.ddconfig.ch = TINY["vae"]
        text = CLIPTextConfig(hidden_size=64, intermediate_size=256, num_attention_heads=2, num_hidden_layers=2)
    else:
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    torch.manual_seed(0)
    tensors = {}
    for prefix, part in (("model.diffusion_model", "unet_config"), ("first_stage_model", "first_stage_config")):
        module = instantiate_from_config(params[part])
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {
        f"cond_stage_model.transformer.{name}": tensor for name, tensor in CLIPTextModel(text).state_dict().items()
    }
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.any():
            # Layers that begin at zero would hide everything behind them, and the host divides by the text's mean,
            # which a normalisation without a bias makes zero.
            torch.nn.init.normal_(tensor, std=0.02)
        tensors[name] = tensor.half().contiguous() if tensor.is_floating_point() else tensor
    save_file(tensors, folder / f"{size}.safetensors")
    clip = folder / f"clip-{size}"
    write_tokenizer(clip)
    text.save_pretrained(clip)
    params.cond_stage_config.params = {"version": str(clip.resolve())}
    OmegaConf.save(config, folder / f"{size}.yaml")


def write_tokenizer(folder: Path) -> None:
    """CLIP's own tokenizer, from the file that open_clip brings."""
    import gzip

    import open_clip

    folder.mkdir(exist_ok=True)
    packed = (Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    codes = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*codes, *(code + "</w>" for code in codes), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
