"""`causal_upper_left` and `causal_lower_right` against the masks that they represent."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant, causal_lower_right, causal_upper_left

from preconditioned_attention import PreconditionConfig, preconditioned_attention
from preconditioned_attention.diagnostics.monitor_records import softmax_weights
from preconditioned_attention.layers import MultiheadAttention, Preconditioner
from preconditioned_attention.layers.observation import AttentionArguments, RowObserver, attach_observer
from preconditioned_attention.ops import as_mask
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error

BACKENDS = ["auto", "flash", "composition", "reference"]
LENGTHS = [(4, 4), (3, 5), (5, 3), (1, 6), (6, 1)]
OFFSETS: dict[str, tuple[Callable[..., CausalBias], Callable[[int, int], int]]] = {
    "upper left": (causal_upper_left, lambda queries, keys: 0),
    "lower right": (causal_lower_right, lambda queries, keys: keys - queries),
}


def bias_and_mask(variant: str, queries: int, keys: int) -> tuple[CausalBias, Tensor]:
    make, offset = OFFSETS[variant]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more queries than keys: rows without keys, which stay zero here
        bias = make(queries, keys)
    return bias, torch.ones(queries, keys, dtype=torch.bool).tril(offset(queries, keys))


def inputs(queries: int, keys: int, heads: int = 2, shared: int = 2) -> list[Tensor]:
    shapes = [(2, heads, queries, 8), (2, shared, keys, 8), (2, shared, keys, 8)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("gradient", ["full", "stop"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", OFFSETS)
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_every_backend(queries: int, keys: int, variant: str, backend: str, gradient: str) -> None:
    bias, mask = bias_and_mask(variant, queries, keys)
    leaves = inputs(queries, keys, heads=4)
    out = preconditioned_attention(*leaves, bias, enable_gqa=True, scale=0.4, gradient=gradient, backend=backend)
    expected = diagonal_product(attention_rows(*leaves, mask, 0.4), constant=gradient == "stop")
    assert relative_error(out, expected) <= 1e-13
    weight = torch.randn_like(out)
    actual, wanted = (torch.autograd.grad((y * weight).sum(), leaves) for y in (out, expected))
    for a, w in zip(actual, wanted, strict=True):
        assert (a - w).norm() <= 1e-12 * (1 + w.norm())


@pytest.mark.parametrize("axes", [2, 3, 5])
@pytest.mark.parametrize("variant", OFFSETS)
def test_any_leading_dimensions(variant: str, axes: int) -> None:
    bias, mask = bias_and_mask(variant, 3, 5)
    q, k, v = (x.reshape(1, 2, 2, -1, 8)[(0,) * (5 - axes)] for x in inputs(3, 5))
    expected = diagonal_product(attention_rows(q, k, v, mask)) if axes > 2 else None
    out = preconditioned_attention(q, k, v, bias)
    assert relative_error(out, preconditioned_attention(q, k, v, mask)) <= 1e-14
    assert expected is None or relative_error(out, expected) <= 1e-13


@pytest.mark.parametrize("variant", OFFSETS)
def test_dropout_and_low_precision(variant: str) -> None:
    bias, mask = bias_and_mask(variant, 3, 5)
    for options in ({"dropout_p": 0.5}, {}):
        q, k, v = (x.detach().to(torch.float64 if options else torch.bfloat16) for x in inputs(3, 5))
        outs = []
        for given in (bias, mask):
            torch.manual_seed(3)
            outs.append(preconditioned_attention(q, k, v, given, **options))
        torch.testing.assert_close(*outs)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("variant", OFFSETS)
@pytest.mark.parametrize("closed_over", [False, True])
def test_compiled(closed_over: bool, variant: str, dynamic: bool) -> None:
    torch.compiler.reset()
    bias, mask = bias_and_mask(variant, 3, 5)
    leaves = inputs(3, 5)
    if closed_over:
        function, given = (lambda q, k, v: preconditioned_attention(q, k, v, bias)), ()
    else:
        function, given = preconditioned_attention, (bias,)
    out = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)(*leaves, *given)
    expected = diagonal_product(attention_rows(*leaves, mask))
    assert relative_error(out, expected) <= 1e-13
    grads = (torch.autograd.grad(y.cos().sum(), leaves) for y in (out, expected))
    assert all(relative_error(a, e) <= 1e-12 for a, e in zip(*grads, strict=True))


def test_vmap_and_autocast() -> None:
    bias, mask = bias_and_mask("lower right", 3, 5)
    q, k, v = (x.detach() for x in inputs(3, 5))
    mapped = torch.func.vmap(lambda *x: preconditioned_attention(*x, bias))(q, k, v)
    assert relative_error(mapped, diagonal_product(attention_rows(q, k, v, mask))) <= 1e-13
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = [x.float() for x in (q, k, v)]
        assert torch.equal(preconditioned_attention(*low, bias), preconditioned_attention(*low, mask))


def test_nested_tensors_of_equal_length() -> None:
    values, offsets = torch.randn(7, 2, 8, dtype=torch.float64), torch.tensor([0, 3, 7])
    x = torch.nested.nested_tensor_from_jagged(values, offsets).transpose(1, 2)
    given = {"attn_mask": causal_upper_left(4, 4)}, {"is_causal": True}
    outs = [preconditioned_attention(x, x, x, **options) for options in given]
    assert torch.equal(*(out.values() for out in outs))
    with pytest.raises(ValueError, match="attn_mask must be None with nested tensors"):
        preconditioned_attention(x, x, x, causal_lower_right(3, 4))


def test_a_subclass_and_what_is_none() -> None:
    class Own(CausalBias):
        pass

    q, k, _ = inputs(3, 5)
    mask, is_causal = as_mask(Own(CausalVariant.LOWER_RIGHT, 3, 5), False, q, k)
    assert torch.equal(mask, bias_and_mask("lower right", 3, 5)[1])
    assert not is_causal
    for mask in (None, torch.ones(3, 5), torch.nn.Parameter(torch.ones(3, 5))):
        assert as_mask(mask, False, q, k) == (mask, False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused(backend: str) -> None:
    q, k, v = inputs(3, 5)
    with pytest.raises(ValueError, match="attn_mask and is_causal=True exclude each other"):
        preconditioned_attention(q, k, v, causal_lower_right(3, 5), is_causal=True, backend=backend)
    for lengths in ((4, 6), (4, 4)):  # plain attention takes the second for another mask
        with pytest.raises(ValueError, match=r"attn_mask must broadcast to the scores, \(2, 2, 3, 5\); got shape"):
            preconditioned_attention(q, k, v, causal_lower_right(*lengths), backend=backend)


@pytest.mark.parametrize("variant", OFFSETS)
def test_layers_and_what_watches_them(variant: str) -> None:
    bias, mask = bias_and_mask(variant, 3, 5)
    q, k, v = inputs(3, 5)
    module = Preconditioner(PreconditionConfig())
    seen: list[Tensor] = []
    attach_observer(module, RowObserver(lambda rows, out: seen.append(rows)))
    assert relative_error(module.attend(q, k, v, bias), diagonal_product(attention_rows(q, k, v, mask))) <= 1e-13
    assert relative_error(seen[0], attention_rows(q, k, v, mask)) <= 1e-13
    places = torch.arange(2), torch.arange(2), torch.arange(3)
    given = [softmax_weights(AttentionArguments(q, k, v, attn_mask=m), *places) for m in (bias, mask)]
    assert torch.equal(*given)
    for config in (None, PreconditionConfig()):
        layer = MultiheadAttention(16, 2, precondition=config)
        x, cached = torch.randn(2, 3, 16), (torch.randn(2, 2, 2, 8), torch.randn(2, 2, 2, 8))
        outs = [layer(x, attn_mask=m, past_key_value=cached) for m in (bias, mask)]
        torch.testing.assert_close(*outs)


def test_plain_attention_agrees() -> None:
    for variant in OFFSETS:
        bias, mask = bias_and_mask(variant, 3, 5)
        q, k, v = inputs(3, 5)
        assert relative_error(F.scaled_dot_product_attention(q, k, v, bias), attention_rows(q, k, v, mask)) <= 1e-13
