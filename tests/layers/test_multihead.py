import math

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.layers import MultiheadAttention
from tests.helpers.explicit import attention_rows, relative_error
from tests.helpers.layer_comparison import MODES, assert_equal_with_gradients, c_of, merge, split


def turn(angles: Tensor) -> object:
    """A rotary callable: adjacent pairs of channels turned by position times frequency."""

    def rotary(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(
            torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * angles).flatten(-2)
            for x in (q, k)
        )

    return rotary


def angles(start: int, stop: int, head_dim: int) -> Tensor:
    positions = torch.arange(start, stop, dtype=torch.float64)[:, None]
    theta = positions * torch.logspace(0, -2, head_dim // 2, dtype=torch.float64)
    return torch.polar(torch.ones_like(theta), theta)


def by_hand(
    layer: nn.Module, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, rotary: object = None
) -> Tensor:
    source = x if context is None else context
    q, k, v = (
        split(project(t), layer.head_dim)
        for project, t in ((layer.q_proj, x), (layer.k_proj, source), (layer.v_proj, source))
    )
    if rotary is not None:
        q, k = rotary(q, k)
    return layer.proj(merge(c_of(layer)(attention_rows(q, k, v, mask))))


def tril(new: int, everything: int) -> Tensor:
    return torch.ones(new, everything, dtype=torch.bool).tril(everything - new)


CASES = {
    "self": ({}, {}),
    "no bias, wide heads": ({"qkv_bias": False, "proj_bias": False, "head_dim": 6}, {}),
    "causal": ({}, {"is_causal": True}),
    "grouped, causal": ({"num_kv_heads": 2}, {"is_causal": True}),
    "one key head": ({"num_kv_heads": 1}, {}),
    "boolean mask": ({}, {"attn_mask": torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) > 0.4}),
    "additive mask": ({}, {"attn_mask": torch.randn(4, 7, 7, generator=torch.Generator().manual_seed(2)).double()}),
    "rotary": ({"num_kv_heads": 2}, {"rotary": turn(angles(0, 7, 4))}),
    "cross": (
        {"context_dim": 10},
        {"context": torch.randn(2, 9, 10, generator=torch.Generator().manual_seed(3)).double()},
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_against_a_forward_by_hand(case: str, mode: str) -> None:
    built, called = CASES[case]
    layer = MultiheadAttention(16, 4, precondition=MODES[mode], dtype=torch.float64, **built)
    x = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    mask = tril(7, 7) if called.get("is_causal") else called.get("attn_mask")
    expected = by_hand(layer, x, called.get("context"), mask, called.get("rotary"))
    assert_equal_with_gradients(layer(x, **called), expected, layer, x)


def test_plain_is_torch_multihead_attention() -> None:
    theirs = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    nn.init.normal_(theirs.in_proj_bias)
    ours = MultiheadAttention(16, 4, precondition=None, dtype=torch.float64)
    with torch.no_grad():
        weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
        for linear, weight, bias in zip((ours.q_proj, ours.k_proj, ours.v_proj), weights, biases, strict=True):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
    ours.proj.load_state_dict(theirs.out_proj.state_dict())
    x, context = torch.randn(2, 7, 16, dtype=torch.float64), torch.randn(2, 5, 16, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    assert relative_error(ours(x), theirs(x, x, x)[0]) <= 1e-12
    expected = theirs(x, context, context, key_padding_mask=padding)[0]
    assert relative_error(ours(x, context, attn_mask=~padding[:, None, None, :]), expected) <= 1e-12


@pytest.mark.parametrize("mode", ["plain", "full", "gain"])
@pytest.mark.parametrize("steps", [[1] * 6, [4, 1, 1], [2, 3, 1]], ids=str)
def test_with_a_cache_as_without(steps: list[int], mode: str) -> None:
    layer = MultiheadAttention(16, 4, num_kv_heads=2, precondition=MODES[mode], dtype=torch.float64)
    x = torch.randn(3, 6, 16, dtype=torch.float64)
    whole = layer(x, is_causal=True, rotary=turn(angles(0, 6, 4)))
    past, parts, done = None, [], 0
    for step in steps:
        rotary = turn(angles(done, done + step, 4))
        part, past = layer(x[:, done : done + step], is_causal=True, rotary=rotary, past_key_value=past, use_cache=True)
        parts.append(part)
        done += step
    assert relative_error(torch.cat(parts, dim=1), whole) <= 1e-12
    keys, values = past
    assert keys.shape == values.shape == (3, 2, 6, 4)


@pytest.mark.slow
def test_decoding_compiles_to_one_graph() -> None:
    layer = MultiheadAttention(16, 4, num_kv_heads=2, dtype=torch.float64)
    step = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    x = torch.randn(3, 8, 16, dtype=torch.float64)
    whole = layer(x, is_causal=True)
    parts, past = [], None
    with torch.no_grad():
        for start, stop in ((0, 3), (3, 4), (4, 5), (5, 8)):
            part, past = step(x[:, start:stop], is_causal=True, past_key_value=past, use_cache=True)
            parts.append(part)
    assert relative_error(torch.cat(parts, dim=1), whole) <= 1e-12


def test_a_mask_covers_cached_tokens_too() -> None:
    layer = MultiheadAttention(16, 4, dtype=torch.float64)
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    mask = tril(6, 6) & (torch.arange(6) != 1) | torch.eye(6, dtype=torch.bool)  # nobody else sees token 1
    whole = layer(x, attn_mask=mask)
    _, past = layer(x[:, :4], use_cache=True)
    assert relative_error(layer(x[:, 4:], attn_mask=mask[4:], past_key_value=past), whole[:, 4:]) <= 1e-12


@pytest.mark.parametrize("mode", ["plain", "full"])
def test_a_query_that_may_attend_to_nothing(mode: str) -> None:
    layer = MultiheadAttention(16, 4, precondition=MODES[mode], dtype=torch.float64)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    out = layer(x, attn_mask=mask)
    out.square().sum().backward()
    assert torch.equal(out[:, 2], layer.proj.bias.expand(2, -1))
    assert x.grad.isfinite().all()


def test_attention_dropout_comes_before_the_norm_and_only_in_training() -> None:
    layer = MultiheadAttention(16, 2, attn_drop=0.5, dtype=torch.float64)
    layer.proj = nn.Identity()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    norms = layer(x).unflatten(-1, (2, 8)).norm(dim=-1)
    assert (norms - 1).abs().max() <= 1e-14
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_a_backend_is_used() -> None:
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    reference, auto = (
        MultiheadAttention(16, 4, precondition=PreconditionConfig(backend=backend), dtype=torch.float64)
        for backend in ("reference", "auto")
    )
    auto.load_state_dict(reference.state_dict())
    assert relative_error(auto(x), reference(x)) <= 1e-12
    cudnn = MultiheadAttention(16, 4, precondition=PreconditionConfig(backend="cudnn"))
    with pytest.raises(ValueError, match="backend='cudnn' does not support this call"):
        cudnn(torch.randn(2, 5, 16))


X = torch.linspace(-1, 1, 2 * 7 * 16).sin().reshape(2, 7, 16)
KEYS = torch.ones(2, 4, 3, 4)


@pytest.mark.parametrize(
    ("built", "called", "message"),
    [
        ({"num_kv_heads": 3}, None, "num_kv_heads must divide num_heads = 4; got 3"),
        ({"num_kv_heads": 0}, None, "num_kv_heads must be at least 1"),
        ({"context_dim": 0}, None, "context_dim must be at least 1"),
        ({"context_dim": 8}, {}, "context must be given"),
        ({"context_dim": 8}, {"context": X}, r"context must have shape .* context_dim = 8; got \(2, 7, 16\)"),
        ({}, {"context": X[:1]}, r"context must have shape .* B = 2"),
        ({}, {"context": X, "is_causal": True}, "are for self-attention"),
        ({}, {"context": X, "use_cache": True}, "are for self-attention"),
        ({}, {"context": X, "past_key_value": (KEYS, KEYS)}, "are for self-attention"),
        ({}, {"attn_mask": X[0, :, :7] > 0, "is_causal": True}, "attn_mask and is_causal=True exclude each other"),
        ({}, {"attn_mask": torch.ones(7, 6).bool()}, r"attn_mask must broadcast .* \(2, 4, 7, 7\); got \(7, 6\)"),
        ({}, {"attn_mask": torch.ones(7).bool()}, "attn_mask must broadcast"),
        (
            {},
            {"past_key_value": (KEYS, KEYS[:, :2])},
            r"past_key_value must hold .* got values of shape \(2, 2, 3, 4\)",
        ),
        ({}, {"past_key_value": (KEYS[..., :2], KEYS)}, "past_key_value must hold .* got keys"),
    ],
)
def test_what_does_not_go_together(built: dict, called: dict | None, message: str) -> None:
    if called is None:
        with pytest.raises(ValueError, match=message):
            MultiheadAttention(16, 4, **built)
        return
    layer = MultiheadAttention(16, 4, **built)
    with pytest.raises(ValueError, match=message):
        layer(X, **called)


def test_an_integer_mask_is_not_guessed_at() -> None:
    with pytest.raises(TypeError, match="attn_mask must be boolean"):
        MultiheadAttention(16, 4)(X, attn_mask=torch.ones(7, 7, dtype=torch.int64))


def test_scale_is_that_of_the_head() -> None:
    layer = MultiheadAttention(16, 4, head_dim=9, precondition=None, dtype=torch.float64)
    x = X.double()
    q, k, v = (split(project(x), 9) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    weights = (q @ k.mT / math.sqrt(9)).softmax(dim=-1)
    assert relative_error(layer(x), layer.proj(merge(weights @ v))) <= 1e-12
