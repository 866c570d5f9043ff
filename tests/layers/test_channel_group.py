import pytest
import torch
from timm.models.davit import ChannelAttention, ChannelAttentionV2
from torch import Tensor, nn

from preconditioned_attention.layers import ChannelGroupAttention
from tests.helpers.explicit import relative_error
from tests.helpers.layer_comparison import MODES, assert_equal_with_gradients, c_of, merge, split


def by_hand(layer: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (split(part, layer.head_dim) for part in layer.qkv(x).chunk(3, dim=-1))
    exponentials = (torch.einsum("bhnc,bhnd->bhcd", q, k) / layer.head_dim**0.5).exp()
    weights = exponentials / exponentials.sum(dim=-1, keepdim=True)
    return layer.proj(merge(c_of(layer)(torch.einsum("bhcd,bhnd->bhnc", weights, v))))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_against_a_forward_by_hand(qkv_bias: bool, mode: str) -> None:
    layer = ChannelGroupAttention(12, 3, qkv_bias=qkv_bias, precondition=MODES[mode], dtype=torch.float64)
    x = torch.randn(2, 9, 12, dtype=torch.float64, requires_grad=True)
    assert_equal_with_gradients(layer(x), by_hand(layer, x), layer, x)


def test_plain_is_timm_channel_attention() -> None:
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    ours = ChannelGroupAttention(12, 3, qkv_bias=True, precondition=None, dtype=torch.float64)
    second = ChannelAttentionV2(12, 3, dynamic_scale=False).double()
    ours.load_state_dict(second.state_dict())
    assert relative_error(ours(x), second(x)) <= 1e-12
    first = ChannelAttention(12, 3, qkv_bias=True).double()
    state = first.state_dict()
    for name in ("qkv.weight", "qkv.bias"):  # the first version's letters: softmax(k^T v) applied to q
        q, k, v = state[name].chunk(3)
        state[name] = torch.cat([k, v, q])
    ours.load_state_dict(state)
    assert relative_error(ours(x), first(x)) <= 1e-12
