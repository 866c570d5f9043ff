import pytest
import torch
from timm.models.xcit import XCA
from torch import Tensor, nn

from preconditioned_attention.layers import CrossCovarianceAttention
from tests.helpers.explicit import relative_error
from tests.helpers.layer_comparison import MODES, assert_equal_with_gradients, c_of, merge, split


def by_hand(layer: nn.Module, x: Tensor) -> Tensor:
    """The paper's letters: channels by tokens, transposed for the rows."""
    q, k, v = (split(part, layer.head_dim).mT for part in layer.qkv(x).chunk(3, dim=-1))  # (B, H, d, N)
    q, k = (part / (part**2).sum(dim=-1, keepdim=True) ** 0.5 for part in (q, k))
    scores = (q @ k.mT) * layer.temperature
    exponentials = scores.exp()
    product = exponentials / exponentials.sum(dim=-1, keepdim=True) @ v
    return layer.proj(merge(c_of(layer)(product.mT)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_against_a_forward_by_hand(qkv_bias: bool, mode: str) -> None:
    layer = CrossCovarianceAttention(12, 3, qkv_bias=qkv_bias, precondition=MODES[mode], dtype=torch.float64)
    nn.init.uniform_(layer.temperature, 0.5, 4.0)
    x = torch.randn(2, 9, 12, dtype=torch.float64, requires_grad=True)
    assert_equal_with_gradients(layer(x), by_hand(layer, x), layer, x)


@pytest.mark.parametrize("fused", [False, True])
def test_plain_is_timm_xca(fused: bool) -> None:
    theirs = XCA(12, 3, qkv_bias=True).double().eval()
    theirs.fused_attn = fused
    nn.init.uniform_(theirs.temperature, 0.5, 4.0)
    ours = CrossCovarianceAttention(12, 3, qkv_bias=True, precondition=None, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    assert relative_error(ours(x), theirs(x)) <= 1e-12


def test_dropout_of_the_channels_comes_before_the_norm() -> None:
    layer = CrossCovarianceAttention(16, 2, attn_drop=0.3, dtype=torch.float64)
    layer.proj = nn.Identity()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    assert (layer(x).unflatten(-1, (2, 8)).norm(dim=-1) - 1).abs().max() <= 1e-14
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
