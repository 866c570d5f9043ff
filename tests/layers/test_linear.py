import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preconditioned_attention.layers import LinearAttention
from tests.helpers.explicit import diagonal_product, relative_error
from tests.helpers.layer_comparison import MODES, assert_equal_with_gradients, c_of, merge, split


def rows_by_hand(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """The quadratic form: all pairs, those not allowed with weight zero."""
    pairs = torch.einsum("bhid,bhjd->bhij", F.elu(q) + 1, F.elu(k) + 1) * allowed
    return torch.einsum("bhij,bhjd->bhid", pairs, v) / pairs.sum(dim=-1, keepdim=True)


def by_hand(layer: nn.Module, x: Tensor, allowed: Tensor) -> Tensor:
    q, k, v = (split(part, layer.head_dim) for part in layer.qkv(x).chunk(3, dim=-1))
    return layer.proj(merge(c_of(layer)(rows_by_hand(q, k, v, allowed))))


PADDING = torch.tensor([[False] * 9, [True, False, False, True, False, False, False, True, True]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_against_a_forward_by_hand(is_causal: bool, padded: bool, mode: str) -> None:
    layer = LinearAttention(12, 3, precondition=MODES[mode], dtype=torch.float64)
    x = torch.randn(2, 9, 12, dtype=torch.float64, requires_grad=True)
    allowed = torch.ones(9, 9, dtype=torch.float64)
    allowed = allowed.tril() if is_causal else allowed
    padding = None
    if padded:
        padding = PADDING.roll(-1, dims=1) if is_causal else PADDING  # so that every query has a key
        allowed = allowed * ~padding[:, None, None, :]
    out = layer(x, padding, is_causal=is_causal)
    assert_equal_with_gradients(out, by_hand(layer, x, allowed), layer, x)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_causal_over_several_chunks(length: int) -> None:
    layer = LinearAttention(8, 2, precondition=None, dtype=torch.float64)
    x = torch.randn(2, length, 8, dtype=torch.float64, requires_grad=True)
    allowed = torch.ones(length, length, dtype=torch.float64).tril()
    assert_equal_with_gradients(layer(x, is_causal=True), by_hand(layer, x, allowed), layer, x)


def test_the_future_changes_nothing() -> None:
    layer = LinearAttention(8, 2)
    x = torch.randn(2, 100, 8)
    other = torch.cat([x[:, :70], 50 * torch.randn(2, 30, 8)], dim=1)
    assert torch.equal(layer(x, is_causal=True)[:, :70], layer(other, is_causal=True)[:, :70])


def test_unit_rows_do_not_see_the_denominator() -> None:
    layer = LinearAttention(12, 3, dtype=torch.float64)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    q, k, v = (split(part, 4) for part in layer.qkv(x).chunk(3, dim=-1))
    numerator = (F.elu(q) + 1) @ ((F.elu(k) + 1).mT @ v)
    assert relative_error(layer(x), layer.proj(merge(diagonal_product(numerator)))) <= 1e-12


@pytest.mark.parametrize("mode", ["plain", "full"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_query_that_may_attend_to_nothing(is_causal: bool, mode: str) -> None:
    layer = LinearAttention(12, 3, precondition=MODES[mode])
    x = torch.randn(2, 9, 12, requires_grad=True)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, : 3 if is_causal else 9] = True
    out = layer(x, padding, is_causal=is_causal)
    (1e4 * out.square().sum()).backward()
    assert torch.equal(out[1, :3], layer.proj.bias.expand(3, -1))
    assert x.grad.isfinite().all()


def test_small_features_keep_their_direction() -> None:
    """elu(x) + 1 in float32 is zero below -17; exp(x) is not."""
    layer = LinearAttention(4, 1, qkv_bias=False, precondition=None)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.eye(4).repeat(3, 1))
        x = torch.full((1, 3, 4), -30.0)
        x[..., 0] = torch.tensor([-30.0, -31.0, -32.0])
        rows = layer.double()(x.double())
        assert relative_error(layer.float()(x).double(), rows) <= 1e-5


def test_half_precision_sums_are_wide() -> None:
    """The denominator of 5,000 equal tokens is beyond float16."""
    layer = LinearAttention(8, 2, precondition=None)
    x = torch.randn(1, 1, 8).expand(1, 5000, 8)
    with torch.no_grad():
        layer.qkv.weight.mul_(20)
        expected = layer(x)
        out = layer.half()(x.half())
    assert relative_error(out.float(), expected) <= 1e-2


@pytest.mark.parametrize("is_causal", [False, True])
def test_under_autocast_it_is_computed_in_float32(is_causal: bool) -> None:
    """From queries, keys and values in bfloat16 the rows are exact but for their own rounding, once."""
    layer = LinearAttention(32, 4, precondition=None)
    layer.proj = nn.Identity()
    x = torch.randn(2, 64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x, is_causal=is_causal)
        parts = [split(part, 8).double() for part in layer.qkv(x).chunk(3, dim=-1)]
    assert out.dtype == torch.bfloat16
    allowed = torch.ones(64, 64, dtype=torch.float64)
    expected = merge(rows_by_hand(*parts, allowed.tril() if is_causal else allowed))
    rounding = relative_error(expected.bfloat16().double(), expected)
    assert relative_error(out.double(), expected) <= 1.01 * rounding


def test_what_does_not_fit() -> None:
    layer = LinearAttention(8, 2)
    x = torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match=r"key_padding_mask must have shape \(B, N\) = \(2, 5\); got \(2, 4\)"):
        layer(x, torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="key_padding_mask must be boolean"):
        layer(x, torch.zeros(2, 5))
