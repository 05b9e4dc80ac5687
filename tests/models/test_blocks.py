from __future__ import annotations

import torch
from torch import nn

from hyperdream_core.models.blocks import Attention, DecoderBlock, GridPooling, ResidualBlock


def test_attention_equals_torchs_own() -> None:
    torch.random.manual_seed(0)
    ours, theirs = Attention(6, heads=3), nn.MultiheadAttention(6, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, memory = torch.randn(2, 5, 6), torch.randn(2, 7, 6)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])
    torch.testing.assert_close(ours(x, ours.project(memory)), theirs(x, memory, memory)[0])


def test_decoder_block_treats_tokens_as_a_set_and_reads_the_memory() -> None:
    torch.random.manual_seed(0)
    block = DecoderBlock(8, heads=2, feed_forward_ratio=3)
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    projected = block.attend_memory.project(memory)
    out, order = block(x, projected), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(block(x[:, order], projected), out[:, order])
    assert (block(x, block.attend_memory.project(memory + 1)) - out).abs().max() > 1e-3


def test_pooling_knows_where_a_token_lies() -> None:
    torch.random.manual_seed(0)
    pool, tokens = GridPooling(5, 6, channels=3), torch.randn(2, 5, 6)
    assert pool(tokens).shape == (2, 6)
    assert (pool(tokens.flip(1)) - pool(tokens)).abs().max() > 1e-3


def test_residual_block_is_its_skip_when_the_last_convolution_is_zero() -> None:
    torch.random.manual_seed(0)
    block = ResidualBlock(8, 16, stride=2)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = torch.randn(2, 8, 6, 10)
    torch.testing.assert_close(block(x), block.skip(nn.functional.avg_pool2d(x, 2)))
