"""A UNet under ldm's names whose work diffusers' does: both trees hold the very same layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hyperdream_core.bases import get_base
from hyperdream_core.pipelines.diffusers.single_file_export import unet_to_ldm


class UNetModel(nn.Module):
    def __init__(self, config: Mapping[str, Any], heads: int) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        levels = len(config["channel_mult"])
        layers = config["num_res_blocks"][0]
        attends = [config["transformer_depth"][level * layers] > 0 for level in range(levels)]
        self._unet = [  # a list hides it from the module tree
            UNet2DConditionModel(
                in_channels=config["in_channels"],
                out_channels=config["out_channels"],
                block_out_channels=tuple(config["model_channels"] * times for times in config["channel_mult"]),
                layers_per_block=layers,
                down_block_types=tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends),
                up_block_types=tuple("CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
                cross_attention_dim=config["context_dim"],
                attention_head_dim=heads,
            ).train(False)
        ]
        shape = get_base("miniature").unet
        for name, layer in self._unet[0].named_modules():
            if next(layer.children(), None) is None and next(layer.parameters(), None) is not None:
                owner: nn.Module = self
                *path, last = unet_to_ldm(f"{name}.weight", shape).split(".")[:-1]
                for part in path:
                    if part not in owner._modules:
                        owner.add_module(part, nn.Module())
                    owner = owner._modules[part]  # type: ignore[assignment]
                owner.add_module(last, layer)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Any = None,
        control: Any = None,
        transformer_options: Any = None,
    ) -> Tensor:
        result: Tensor = self._unet[0](x, timesteps, encoder_hidden_states=context, return_dict=False)[0]
        return result
