"""The miniature's base: a text encoder and a UNet with Stable Diffusion 1.x's topology and names, in small.

64 px pictures become latents of 32 x 8 x 8. The network predicts v on SD's own noise schedule: at this size identity
and layout are decided where there is almost only noise, and there a prediction of eps says next to nothing about the
picture (its error is divided by sqrt(alpha_bar) = 0.07), while v stays well scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bases.miniature import MINIATURE
from ...ops.noise import DiscreteDiffusion, alphas_cumprod, biased_t
from ...pipelines.diffusers.schedule import SCHEDULE as SD_SCHEDULE
from ..world.captions import IDENTIFIER, Context, make_captions
from .autoencoder import LATENT_CHANNELS
from .corpus import Corpus

BLOCK_CHANNELS = MINIATURE.unet.channels
TEXT_WIDTH = MINIATURE.text_encoders[0].width
SCHEDULE = {**SD_SCHEDULE, "prediction_type": "v_prediction"}


def new_unet() -> Any:
    """An untrained `diffusers.UNet2DConditionModel` of SD 1.x's topology: four blocks, 8 heads; one layer a block."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=MINIATURE.picture_size // MINIATURE.vae_factor,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=BLOCK_CHANNELS,
        layers_per_block=MINIATURE.unet.layers_per_block,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=32,
    )


def new_text_encoder(width: int = TEXT_WIDTH) -> Any:
    """An untrained `transformers.CLIPTextModel` of two narrow layers with CLIP's own vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return CLIPTextModel(config)


@dataclass(frozen=True)
class BaseBatch:
    """Latents (b, c, 8, 8) and the captions that belong to them."""

    latents: Tensor
    captions: list[str]


class BaseObjective(nn.Module):
    """Mean square error of v over noise levels drawn with a lean towards noise."""

    def __init__(self, unet: Any, text_encoder: Any, tokenizer: Any, noise_power: float = 1.2) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.tokenizer, self.noise_power = unet, text_encoder, tokenizer, noise_power
        self.process = DiscreteDiffusion(alphas_cumprod().float(), "v_prediction")

    def forward(self, batch: BaseBatch, generator: torch.Generator) -> Tensor:
        """Loss of one batch."""
        clean = batch.latents
        device = clean.device
        t = biased_t(generator, len(clean), self.noise_power)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        tokens = tokenize(self.tokenizer, batch.captions).to(device)
        text = self.text_encoder(tokens)[0]
        output = self.unet(self.process.noisy(clean, noise, t), self.process.model_time(t).to(device), text).sample
        return F.mse_loss(output, self.process.target(clean, noise, t))


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """Token indices (b, 77), padded as SD pads."""
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def draw_base_batch(
    sources: list[tuple[Corpus, np.ndarray, str]], count: int, generator: torch.Generator, pet_share: float = 0.12
) -> BaseBatch:
    """Pictures of faces (source 0) and pets (source 1) with captions.

    Half the captions carry the identifier, so that the base takes it for nobody in particular; one in ten names
    nothing but the subject, one attribute in ten is left unsaid, and one caption in ten is empty for guidance.

    Args:
        sources: corpus, its latents (subjects, contexts, c, 8, 8) and the noun, for each kind.
        count: pictures.
        generator: of this step.
        pet_share: share of pets.
    """
    pets = int((torch.rand(count, generator=generator) < pet_share).sum()) if len(sources) > 1 else 0
    latents, captions = [], []
    for (corpus, codes, noun), share in zip(sources, (count - pets, pets), strict=False):
        subject = torch.randint(codes.shape[0], (share,), generator=generator)
        place = torch.randint(codes.shape[1], (share,), generator=generator)
        latents.append(torch.from_numpy(codes[subject.numpy(), place.numpy()].astype(np.float32)))
        captions += drop_captions(corpus.context[subject * corpus.contexts + place], noun, generator)
    return BaseBatch(torch.cat(latents), captions)


def drop_captions(context: Context, noun: str, generator: torch.Generator, named_share: float = 0.45) -> list[str]:
    """Captions of contexts with attributes left out at random; a share is named by the identifier.

    Of the rest, one tenth of all are empty and the others speak of the noun in general; 1.0 names every one.
    """
    count = len(context)
    dropped = torch.rand(count, 4, generator=generator) < 0.1
    dropped |= (torch.rand(count, generator=generator) < 0.1).unsqueeze(-1)
    named = make_captions(context, noun, IDENTIFIER, dropped)
    general = make_captions(context, noun, None, dropped)
    choice = torch.rand(count, generator=generator)
    return [
        first if draw < named_share else ("" if draw >= 0.9 else second)
        for draw, first, second in zip(choice.tolist(), named, general, strict=True)
    ]


def tokenizer_folder() -> Any:
    """Where CLIP's tokenizer files are shipped."""
    from ...bundled import bundled_weights

    return bundled_weights() / "miniature" / "base" / "tokenizer"
