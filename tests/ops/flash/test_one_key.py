"""Rows that see one key: their gradients of q and k are 0, up to the last bit of the terms that cancel."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from preconditioned_attention import preconditioned_attention, preconditioned_varlen_attention
from preconditioned_attention.equilibration import default_eps
from preconditioned_attention.ops import AttentionInputs
from preconditioned_attention.ops.flash import cpu
from preconditioned_attention.ops.flash.cuda import FLASH_CUDA
from preconditioned_attention.ops.flash.cudnn import CUDNN
from preconditioned_attention.ops.flash.efficient import EFFICIENT
from tests.helpers.emulated_cuda import emulated
from tests.helpers.explicit import attention_rows, diagonal_product

GRADIENTS = ["full", "stop"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAST_BIT = 2e-6  # of float32, in which kernels add up, times the length of the terms here


def inputs(dtype: torch.dtype, queries: int, keys: int, heads: int = 4, shared: int = 2) -> list[Tensor]:
    shapes = [(2, heads, queries, 16), (2, shared, keys, 16), (2, shared, keys, 16)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def gradients(attend: Callable[..., Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    out = attend(*leaves)
    torch.manual_seed(1)
    return torch.autograd.grad(out, leaves, torch.randn(out.shape, dtype=torch.float64).to(out.dtype))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("queries", "keys", "options"),
    [
        *((1, 1, {}), (7, 1, {}), (7, 1, {"attn_mask": torch.tensor([1, 0, 1, 1, 1, 0, 1]).bool()[:, None]})),
        *((1, 1, {"is_causal": True}), (5, 1, {"is_causal": True}), (1, 6, {"is_causal": True})),
    ],
    ids=str,
)
def test_one_key_in_all(queries: int, keys: int, options: dict, dtype: torch.dtype, gradient: str) -> None:
    leaves = inputs(dtype, queries, keys)
    dq, dk, dv = gradients(
        lambda *x: preconditioned_attention(*x, enable_gqa=True, gradient=gradient, backend="flash", **options), leaves
    )
    assert not dq.any()
    assert not dk.any()
    exact = [x.detach().double().requires_grad_() for x in leaves]
    mask = options.get("attn_mask", torch.ones(queries, keys, dtype=torch.bool).tril() if options else None)
    rows = attention_rows(*exact, mask)
    expected = diagonal_product(rows, constant=gradient == "stop", eps=default_eps(dtype))
    torch.manual_seed(1)
    weight = torch.randn(rows.shape, dtype=torch.float64).to(dtype).double()
    wanted = torch.autograd.grad(expected, exact[2], weight)[0]
    assert (dv.double() - wanted).norm() <= 4 * torch.finfo(dtype).eps * wanted.norm()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", ["causal", "boolean mask", "additive mask"])
def test_some_rows(kind: str, dtype: torch.dtype, gradient: str, compiled: bool) -> None:
    """The others' gradient is masked out, so that all of q's and k's comes from rows that see one key."""
    leaves = inputs(dtype, 6, 6)
    alone = torch.tensor([True, False, False, True, True, False])
    mask = torch.where(alone[:, None], torch.eye(6).flip(0) > 0, torch.rand(6, 6) > 0.2)
    mask[1] = False
    options = {
        "causal": {"is_causal": True},
        "boolean mask": {"attn_mask": mask},
        "additive mask": {"attn_mask": torch.zeros(6, 6, dtype=dtype).masked_fill(~mask, -torch.inf)},
    }[kind]
    rows = torch.arange(6) == 0 if kind == "causal" else alone

    def attend(*x: Tensor) -> Tensor:
        y = preconditioned_attention(*x, enable_gqa=True, gradient=gradient, backend="flash", **options)
        return torch.where(rows[:, None], y, y.detach())

    if compiled:
        torch.compiler.reset()
        attend = torch.compile(attend, fullgraph=True, backend="aot_eager")
    dq, dk, dv = gradients(attend, leaves)
    assert dq.abs().max() <= LAST_BIT
    assert dk.abs().max() <= LAST_BIT
    assert dv.any()


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kernel", [FLASH_CUDA, EFFICIENT, CUDNN], ids=["flash", "efficient", "cudnn"])
def test_cuda_kernels(kernel, gradient: str, dropout_p: float) -> None:
    rest = {"scale": None, "enable_gqa": True, "gradient": gradient, "gain": None, "dropout_p": dropout_p}

    def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        call = AttentionInputs(q=q, k=k, v=v, attn_mask=None, is_causal=is_causal, eps=default_eps(q.dtype), **rest)
        return kernel.attend(call)

    with emulated():
        dq, dk, _ = gradients(lambda *x: attend(*x, False), inputs(torch.bfloat16, 7, 1))
        assert not dq.any()
        assert not dk.any()
        leaves = inputs(torch.bfloat16, 7, 7)
        dq, dk, _ = gradients(lambda *x: attend(*x, True)[:, :, :1], leaves)
        if dropout_p == 0:
            assert max(dq.abs().max(), dk.abs().max()) <= LAST_BIT


def test_the_gradient_of_a_bias_to_one_key() -> None:
    leaves = [*inputs(torch.bfloat16, 7, 1), torch.randn(1, 4, 7, 1).bfloat16().requires_grad_()]
    with emulated():
        *_, dbias = gradients(
            lambda q, k, v, b: EFFICIENT.attend(
                AttentionInputs(q=q, k=k, v=v, attn_mask=b, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=True,
                     gradient="full", gain=None, eps=1e-12)
            ), leaves,
        )  # fmt: skip
    assert not dbias.any()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_packed_sequences(dtype: torch.dtype, gradient: str, is_causal: bool) -> None:
    """One query and key, three queries of one key, and, causal, the row that sees the first key alone."""
    queries, keys = [1, 3, 4, 5], [1, 1, 4, 3]
    q, k, v = (torch.randn(sum(n), 2, 16).to(dtype).requires_grad_() for n in (queries, keys, keys))
    starts = [torch.tensor([0, *n]).cumsum(0).to(torch.int32) for n in (queries, keys)]
    rows = [0, 1, 2, 3, *([4, 10] if is_causal else [])]  # the fourth sequence's third query sees the first key alone

    def attend(*x: Tensor) -> Tensor:
        return preconditioned_varlen_attention(*x, *starts, 5, 4, is_causal=is_causal, gradient=gradient)[rows]

    dq, dk, dv = gradients(attend, [q, k, v])
    assert not dq[:4].any()
    assert not dk[:2].any()
    assert max(dq.abs().max(), dk.abs().max()) <= LAST_BIT
    assert dv.any()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_the_other_rows_keep_their_gradients(dtype: torch.dtype, gradient: str) -> None:
    """Float64 to rounding, with a mask in which rows of every kind lie next to each other."""
    leaves = inputs(dtype, 9, 9)
    mask = torch.rand(2, 1, 9, 9) > 0.6
    mask[0, 0, 2], mask[1, 0, 5] = False, torch.arange(9) == 3
    exact = [x.detach().double().requires_grad_() for x in leaves]
    weight = torch.randn(2, 4, 9, 16).to(dtype)
    out = preconditioned_attention(*leaves, mask, enable_gqa=True, gradient=gradient, backend="flash")
    expected = diagonal_product(attention_rows(*exact, mask), constant=gradient == "stop", eps=default_eps(dtype))
    grads = torch.autograd.grad(out, leaves, weight)
    for actual, wanted in zip(grads, torch.autograd.grad(expected, exact, weight.double()), strict=True):
        assert (actual.double() - wanted).norm() <= 4 * torch.finfo(dtype).eps * wanted.norm()


def test_what_the_operator_is_handed_is_left_as_it_was() -> None:
    q, k, v = (x.detach() for x in inputs(torch.bfloat16, 6, 6))
    bias = torch.zeros(6, 6).masked_fill(~torch.eye(6, dtype=torch.bool), -torch.inf)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
    given = torch.randn_like(out)
    before = given.clone()
    cpu._flash_backward(out, q, k, v, given, lse, False, bias, None)
    assert torch.equal(given, before)
