import pytest
import timm
import torch
import transformers
from open_clip.transformer import Attention
from torch import nn

from preconditioned_attention import precondition_
from preconditioned_attention.conversion.adapter import HeadShape
from preconditioned_attention.conversion.normalized import normalized_already
from preconditioned_attention.conversion.registry import find_adapter


def test_one_head_and_a_norm() -> None:
    assert normalized_already(nn.LayerNorm(8), HeadShape(1, 8)).startswith("normalized already: there is one head")
    assert normalized_already(nn.LayerNorm(8), HeadShape(2, 4)) is None
    assert normalized_already(nn.Identity(), HeadShape(1, 8)) is None
    assert normalized_already(None, HeadShape(1, 8)) is None


def bitnet(heads: int) -> nn.Module:
    settings = {"hidden_size": 8, "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": 8}
    config = transformers.BitNetConfig(**settings, num_hidden_layers=1, vocab_size=8)
    return transformers.BitNetModel(config).layers[0].self_attn


BUILDERS = {
    "timm": lambda heads: timm.layers.Attention(8, heads, scale_norm=True, norm_layer=nn.LayerNorm),
    "timm, rotary": lambda heads: timm.layers.AttentionRope(8, heads, scale_norm=True, norm_layer=nn.LayerNorm),
    "timm, pooling": lambda heads: timm.layers.AttentionPoolPrr(8, heads, post_norm=True),
    "open_clip": lambda heads: Attention(8, heads, inner_norm=True),
    "transformers": bitnet,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_is_refused_for_one_head_and_served_for_two(name: str) -> None:
    refusals = [find_adapter(module).unsupported_reason(module) for module in map(BUILDERS[name], (1, 2))]
    assert refusals[0].startswith("normalized already")
    assert refusals[1] is None


def test_scaling_the_rows_of_one_head_changes_nothing_behind_its_norm() -> None:
    module, x = BUILDERS["timm"](1).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    plain = module(x)
    module.norm.register_forward_pre_hook(lambda norm, args: (args[0] * torch.rand(2, 5, 1).add(0.5),))
    assert torch.allclose(module(x), plain, atol=1e-3)
    with pytest.raises(ValueError, match="normalized already"):
        precondition_(BUILDERS["timm"](1))
