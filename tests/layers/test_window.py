import math

import pytest
import timm
import torch
from timm.models.swin_transformer import WindowAttention as TimmWindowAttention
from torch import Tensor, nn

from preconditioned_attention.layers import WindowAttention
from tests.helpers.explicit import attention_rows, relative_error
from tests.helpers.layer_comparison import MODES, assert_equal_with_gradients, c_of, merge, split


def by_hand(layer: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Token by token: the bias of a pair is looked up by how far down and right the key is from the query."""
    height, width = layer.window_size
    places = [(row, column) for row in range(height) for column in range(width)]
    offsets = [[(a - c + height - 1, b - d + width - 1) for c, d in places] for a, b in places]
    rows = [[down * (2 * width - 1) + right for down, right in line] for line in offsets]
    bias = torch.stack([layer.relative_position_bias_table[line] for line in rows]).permute(2, 0, 1)[None]
    if mask is not None:
        added = (
            torch.zeros(mask.shape, dtype=x.dtype).masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask
        )
        bias = bias + added[torch.arange(len(x)) % len(mask)][:, None]
    q, k, v = (split(part, layer.head_dim) for part in layer.qkv(x).chunk(3, dim=-1))
    return layer.proj(merge(c_of(layer)(attention_rows(q, k, v, bias))))


SHIFTED = torch.zeros(3, 6, 6, dtype=torch.float64)
SHIFTED[1, :3, 3:] = SHIFTED[1, 3:, :3] = -100.0
MASKS = {"no mask": None, "additive": SHIFTED, "boolean": SHIFTED == 0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", MASKS)
def test_against_a_forward_by_hand(mask: str, mode: str) -> None:
    layer = WindowAttention(16, (2, 3), 4, precondition=MODES[mode], dtype=torch.float64)
    nn.init.normal_(layer.relative_position_bias_table)
    x = torch.randn(6, 6, 16, dtype=torch.float64, requires_grad=True)
    assert_equal_with_gradients(layer(x, MASKS[mask]), by_hand(layer, x, MASKS[mask]), layer, x)


@pytest.mark.parametrize("fused", [False, True])
def test_plain_is_timm_window_attention(fused: bool) -> None:
    theirs = TimmWindowAttention(12, 3, head_dim=5, window_size=(4, 3)).double().eval()
    theirs.fused_attn = fused
    ours = WindowAttention(12, (4, 3), 3, head_dim=5, precondition=None, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())  # the names are the same
    x, mask = torch.randn(8, 12, 12, dtype=torch.float64), torch.randn(4, 12, 12, dtype=torch.float64)
    assert relative_error(ours(x), theirs(x)) <= 1e-12
    assert relative_error(ours(x, mask), theirs(x, mask)) <= 1e-12


def test_the_mask_is_that_of_a_swin_block() -> None:
    """Inside timm's own shifted block, with its mask and its order of windows."""
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(2,), embed_dim=24, num_heads=(3,))
    model = model.double().eval()
    block = model.layers[0].blocks[1]
    x = torch.randn(2, 14, 14, 24, dtype=torch.float64)
    assert block.attn_mask is not None
    expected = block(x)
    ours = WindowAttention(24, block.window_size, 3, precondition=None, dtype=torch.float64)
    ours.load_state_dict(block.attn.state_dict())
    block.attn = ours
    assert relative_error(block(x), expected) <= 1e-12


def test_attention_dropout_comes_before_the_norm_and_only_in_training() -> None:
    layer = WindowAttention(16, 3, 2, attn_drop=0.5, dtype=torch.float64)
    layer.proj = nn.Identity()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    assert (layer(x).unflatten(-1, (2, 8)).norm(dim=-1) - 1).abs().max() <= 1e-14
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_one_number_is_a_square() -> None:
    layer = WindowAttention(8, 3, 2)
    assert layer.window_size == (3, 3)
    assert layer.relative_position_bias_table.shape == (25, 2)
    assert "relative_position_index" not in layer.state_dict()


def test_what_does_not_fit() -> None:
    layer = WindowAttention(8, (2, 3), 2)
    x = torch.randn(4, 6, 8)
    with pytest.raises(ValueError, match=r"x must have N = 6 tokens, a window of \(2, 3\); got \(4, 5, 8\)"):
        layer(x[:, :5])
    with pytest.raises(ValueError, match=r"mask must have shape .* N = 6 .* a divisor of 4; got \(3, 6, 6\)"):
        layer(x, torch.zeros(3, 6, 6))
    with pytest.raises(ValueError, match="mask must have shape"):
        layer(x, torch.zeros(6, 6))
    with pytest.raises(TypeError, match="mask must be boolean"):
        layer(x, torch.zeros(2, 6, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"window_size must be a number or \(height, width\)"):
        WindowAttention(8, (2, 3, 4), 2)
    with pytest.raises(ValueError, match="window_size must be at least 1"):
        WindowAttention(8, 0, 2)
