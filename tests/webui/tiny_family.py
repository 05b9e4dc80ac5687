"""A host's extension for tests: Stable Diffusion 1.x is as small as the checkpoint of `make_checkpoint.py`."""

from dataclasses import replace

from hyperdream_core.bases.registry import BASES

if BASES["sd15"].picture_size != 64:
    SD15 = BASES["sd15"]
    BASES["sd15"] = replace(
        SD15,
        unet=replace(SD15.unet, channels=(32, 64, 128, 128), context_dim=64),
        text_encoders=(replace(SD15.text_encoders[0], width=64, layers=2),),
        picture_size=64,
    )
