import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.layers import NystromAttention
from preconditioned_attention.layers.nystrom import iterative_pinv
from tests.helpers.explicit import attention_rows, relative_error
from tests.helpers.layer_comparison import MODES, assert_equal_with_gradients, c_of, merge, split

WIDE = {"dtype": torch.float64}


def inverse_as_published(w: Tensor, iterations: int) -> Tensor:
    """The released code's iteration, starting from the exact |w|_1 of each matrix (its own is over the batch)."""
    identity = torch.eye(w.shape[-1], **WIDE)
    z = w.mT / w.sum(dim=-2).max(dim=-1).values[..., None, None]
    for _ in range(iterations):
        product = w @ z
        z = 0.25 * z @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return z


def rows_as_published(q: Tensor, k: Tensor, v: Tensor, landmarks: int, iterations: int) -> Tensor:
    """Xiong et al. 2021, for a length that is a multiple of the number of landmarks."""
    q, k = q / q.shape[-1] ** 0.25, k / k.shape[-1] ** 0.25
    ql, kl = (x.reshape(*x.shape[:2], landmarks, -1, x.shape[-1]).mean(dim=-2) for x in (q, k))
    kernel_1, kernel_2, kernel_3 = (torch.softmax(a @ b.mT, dim=-1) for a, b in ((q, kl), (ql, kl), (ql, k)))
    return (kernel_1 @ inverse_as_published(kernel_2, iterations)) @ (kernel_3 @ v)


def heads(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [split(part, layer.head_dim) for part in layer.qkv(x).chunk(3, dim=-1)]


def skip_by_hand(layer: nn.Module, v: Tensor) -> Tensor:
    """Per head, every channel filtered along the tokens by the head's taps."""
    taps = layer.conv.weight[:, 0, :, 0]
    batch, num_heads, tokens, width = v.shape
    channels = v.transpose(-2, -1).reshape(batch, -1, tokens)
    out = F.conv1d(
        channels, taps.repeat_interleave(width, dim=0)[:, None], padding=taps.shape[-1] // 2, groups=num_heads * width
    )
    return out.reshape(batch, num_heads, width, tokens).transpose(-2, -1)


def sharp(layer: NystromAttention) -> NystromAttention:
    """Scores that are not all but equal, so that there is something to invert."""
    with torch.no_grad():
        layer.qkv.weight.mul_(3)
    return layer


PLACED = {
    **MODES,
    "post, full": PreconditionConfig(placement="post_skip"),
    "post, stop": PreconditionConfig(placement="post_skip", gradient="stop"),
}


@pytest.mark.parametrize("mode", PLACED)
@pytest.mark.parametrize("kernel", [None, 3])
def test_against_the_published_formula(kernel: int | None, mode: str) -> None:
    config = PLACED[mode]
    if kernel is None and config is not None and config.placement == "post_skip":
        with pytest.raises(ValueError, match=r"placement='post_skip' .* this NystromAttention adds none"):
            NystromAttention(16, 4, precondition=config)
        return
    layer = sharp(NystromAttention(16, 4, num_landmarks=4, conv_kernel_size=kernel, precondition=config, **WIDE))
    x = torch.randn(2, 12, 16, **WIDE, requires_grad=True)
    q, k, v = heads(layer, x)
    rows = rows_as_published(q, k, v, 4, 6)
    if kernel is None:
        expected = c_of(layer)(rows)
    elif config is not None and config.placement == "post_skip":
        expected = c_of(layer)(rows + skip_by_hand(layer, v))
    else:
        expected = c_of(layer)(rows) + skip_by_hand(layer, v)
    assert_equal_with_gradients(layer(x), layer.proj(merge(expected)), layer, x)


def test_plain_is_that_of_transformers() -> None:
    """For one sample and one head: there the maximum over the batch, by which it divides, is that of the matrix."""
    config = NystromformerConfig(
        hidden_size=8, num_attention_heads=1, num_landmarks=4, segment_means_seq_len=12, conv_kernel_size=5
    )
    theirs = NystromformerSelfAttention(config).double().eval()
    ours = NystromAttention(8, 1, num_landmarks=4, conv_kernel_size=5, precondition=None, **WIDE)
    ours.proj = nn.Identity()
    state = theirs.state_dict()
    for kind in ("weight", "bias"):
        state[f"qkv.{kind}"] = torch.cat([3 * state.pop(f"{name}.{kind}") for name in ("query", "key", "value")])
    ours.load_state_dict(state)
    with torch.no_grad():
        for linear in (theirs.query, theirs.key, theirs.value):
            linear.weight.mul_(3)
            linear.bias.mul_(3)
    x = torch.randn(1, 12, 8, **WIDE)
    assert relative_error(ours(x), theirs(x)[0]) <= 1e-12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("landmarks", [9, 20])
def test_exact_attention_when_every_token_is_a_landmark(landmarks: int, mode: str) -> None:
    layer = NystromAttention(16, 4, num_landmarks=landmarks, precondition=MODES[mode], **WIDE)
    x = torch.randn(2, 9, 16, **WIDE, requires_grad=True)
    expected = layer.proj(merge(c_of(layer)(attention_rows(*heads(layer, x)))))
    assert_equal_with_gradients(layer(x), expected, layer, x)


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_the_inverse_converges_as_fast_as_stated(iterations: int) -> None:
    w = torch.softmax(1.5 * torch.randn(3, 2, 8, 8, **WIDE), dim=-1)
    residual = torch.eye(8, **WIDE) - w @ iterative_pinv(w, iterations)
    smallest = torch.linalg.svdvals(w)[..., -1]
    start = 1 - smallest**2 / (torch.linalg.matrix_norm(w, 1) * torch.linalg.matrix_norm(w, math.inf))
    rounding = 1e-12 / smallest**2
    assert (torch.linalg.matrix_norm(residual, 2) <= start ** (3**iterations) + rounding).all()


def test_the_approximation_itself_becomes_exact_as_the_inverse_converges() -> None:
    """With every token a landmark `F = W = G = S`, so `F Z G - S = -(I - S Z) S`: at most the residual's norm."""
    q, k, v = (torch.randn(2, 2, 6, 8, **WIDE) for _ in range(3))
    s = torch.softmax(3 * q @ k.mT / math.sqrt(8), dim=-1)
    smallest = torch.linalg.svdvals(s)[..., -1]
    start = 1 - smallest**2 / (torch.linalg.matrix_norm(s, 1) * torch.linalg.matrix_norm(s, math.inf))
    enough = math.ceil(math.log(math.log(1e-9) / math.log(start.max()), 3))
    exact = torch.linalg.matrix_norm(s @ v, 2)
    for iterations, residual in ((3, start ** (3**3)), (enough, torch.full_like(start, 1e-9))):
        error = torch.linalg.matrix_norm(s @ (iterative_pinv(s, iterations) @ (s @ v)) - s @ v, 2)
        assert (error <= (residual + 1e-12 / smallest**2) * exact).all()


def test_a_matrix_without_full_rank() -> None:
    w = F.pad(torch.softmax(2 * torch.randn(5, 5, **WIDE), dim=-1), (0, 2, 0, 2))
    assert relative_error(iterative_pinv(w, 20), torch.linalg.pinv(w)) <= 1e-9


@pytest.mark.parametrize("mode", ["plain", "full"])
def test_batch_mates_change_nothing(mode: str) -> None:
    layer = sharp(NystromAttention(16, 4, num_landmarks=4, conv_kernel_size=3, precondition=MODES[mode], **WIDE))
    x = torch.randn(3, 13, 16, **WIDE)
    out = layer(x)
    for scale in (0.0, 1.0, 100.0):
        mates = torch.cat([x[:1], scale * torch.randn(2, 13, 16, **WIDE)])
        assert torch.equal(layer(mates)[0], out[0])
    assert relative_error(layer(x[:1]), out[:1]) <= 1e-12
    # nor does their padding, be it all of them
    padding = torch.zeros(3, 13, dtype=torch.bool)
    padding[1, 5:], padding[2] = True, True
    assert relative_error(layer(x, padding)[0], out[0]) <= 1e-12


@pytest.mark.parametrize("mode", ["plain", "full", "post, full"])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 10, 12])
def test_padding_changes_nothing(length: int, mode: str) -> None:
    """Whatever is in the padded tokens, and wherever they are, with fewer tokens than landmarks and with more."""
    layer = sharp(NystromAttention(16, 4, num_landmarks=4, conv_kernel_size=3, precondition=PLACED[mode], **WIDE))
    x = torch.randn(2, length, 16, **WIDE, requires_grad=True)
    expected = layer(x)
    for filling in (0.0, 1e3, math.nan):
        behind = torch.full((2, 7, 16), filling, **WIDE)
        padding = torch.arange(length + 7) >= length
        out = layer(torch.cat([x, behind], dim=1), padding.expand(2, -1))
        assert relative_error(out[:, :length], expected) <= 1e-12
        assert torch.equal(out[:, length:], layer.proj.bias.expand(2, 7, -1))
        before = layer(torch.cat([behind, x], dim=1), padding.flip(0).expand(2, -1))
        assert relative_error(before[:, 7:], expected) <= 1e-12


def test_padding_in_the_middle_equals_leaving_the_tokens_out() -> None:
    layer = sharp(NystromAttention(16, 4, num_landmarks=4, **WIDE))
    x = torch.randn(1, 11, 16, **WIDE)
    padding = torch.tensor([False, True, False, False, True, True, False, False, False, False, True])[None]
    assert relative_error(layer(x, padding)[~padding], layer(x[:, ~padding[0]])[0]) <= 1e-12


def test_a_sample_of_padding_alone_has_finite_gradients() -> None:
    layer = NystromAttention(16, 4, num_landmarks=4, conv_kernel_size=3, **WIDE)
    x = torch.randn(2, 9, 16, **WIDE, requires_grad=True)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1] = True
    out = layer(x, padding)
    out.square().sum().backward()
    assert torch.equal(out[1], layer.proj.bias.expand(9, -1))
    assert all(p.grad.isfinite().all() for p in (x, *layer.parameters()))


def test_a_length_that_the_landmarks_do_not_divide() -> None:
    """Seven tokens in three segments: 3, 2 and 2, every token in one."""
    layer = sharp(NystromAttention(16, 4, num_landmarks=3, precondition=None, **WIDE))
    x = torch.randn(2, 7, 16, **WIDE)
    q, k, v = heads(layer, x)
    ql, kl = (torch.stack([t[:, :, a:b].mean(dim=2) for a, b in ((0, 3), (3, 5), (5, 7))], dim=2) for t in (q, k))
    kernel_1, kernel_2, kernel_3 = (torch.softmax(a @ b.mT / 2, dim=-1) for a, b in ((q, kl), (ql, kl), (ql, k)))
    expected = kernel_1 @ inverse_as_published(kernel_2, 6) @ kernel_3 @ v
    assert relative_error(layer(x), layer.proj(merge(expected))) <= 1e-12


def test_under_autocast_it_is_computed_in_float32() -> None:
    """From queries, keys and values in bfloat16 the rows are exact but for their own rounding, once."""
    layer = sharp(NystromAttention(32, 4, num_landmarks=8, precondition=None))
    layer.proj = nn.Identity()
    x = torch.randn(2, 64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        parts = heads(layer, x)
    assert {out.dtype, *(part.dtype for part in parts)} == {torch.bfloat16}
    expected = merge(rows_as_published(*(part.double() for part in parts), 8, 6))
    rounding = relative_error(expected.bfloat16().double(), expected)
    assert relative_error(out.double(), expected) <= 1.01 * rounding


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="conv_kernel_size must be odd"):
        NystromAttention(8, 2, conv_kernel_size=4)
    with pytest.raises(ValueError, match="num_landmarks must be at least 1"):
        NystromAttention(8, 2, num_landmarks=0)
    with pytest.raises(ValueError, match="pinv_iterations must be at least 1"):
        NystromAttention(8, 2, pinv_iterations=0)
    layer = NystromAttention(8, 2)
    with pytest.raises(ValueError, match=r"key_padding_mask must have shape \(B, N\) = \(2, 5\)"):
        layer(torch.randn(2, 5, 8), torch.zeros(5, dtype=torch.bool))
    with pytest.raises(TypeError, match="key_padding_mask must be boolean"):
        layer(torch.randn(2, 5, 8), torch.zeros(2, 5))
