"""The re-normalized form over each of PyTorch's CUDA operators, emulated on the CPU, and what no kernel supports."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from preconditioned_attention.equilibration import default_eps
from preconditioned_attention.ops import AttentionInputs
from preconditioned_attention.ops.flash.cuda import FLASH_CUDA
from preconditioned_attention.ops.flash.cudnn import CUDNN
from preconditioned_attention.ops.flash.efficient import EFFICIENT
from preconditioned_attention.ops.flash.unsupported import unsupported_on
from tests.helpers.emulated_cuda import SEED, dropout_factors, emulated
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error

KERNELS = {"flash": FLASH_CUDA, "efficient": EFFICIENT, "cudnn": CUDNN}
GRADIENTS = ["full", "stop"]


@pytest.fixture(autouse=True)
def cuda_operators() -> Iterator[None]:
    with emulated():
        yield


def call(q: Tensor, k: Tensor, v: Tensor, **options) -> AttentionInputs:
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    defaults |= {"gradient": "full", "gain": None, "eps": default_eps(q.dtype)}
    return AttentionInputs(q=q, k=k, v=v, **defaults | options)


def heads(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    batch, head, length, d = shape
    return torch.randn(batch, length, head, d, dtype=dtype).transpose(1, 2).requires_grad_()


def check(
    attend: Callable[[AttentionInputs], Tensor], c: AttentionInputs, *, rows: Tensor, leaves: list[Tensor]
) -> None:
    """Output and gradients of the leaves against the explicit diagonal matrix, float64."""
    out = attend(c)
    expected = diagonal_product(rows, constant=c.gradient == "stop", gain=c.gain, eps=c.eps)
    assert relative_error(out, expected) <= 1e-12
    weight = torch.randn_like(out)
    actual_grads = torch.autograd.grad((out * weight).sum(), leaves)
    for actual, wanted in zip(actual_grads, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        assert relative_error(actual, wanted) <= 1e-12


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("queries", "keys", "d"), [(7, 7, 24), (49, 49, 32), (1, 40, 16), (33, 20, 80)])
def test_every_kernel(kernel: str, gradient: str, queries: int, keys: int, d: int) -> None:
    q, k, v = heads(2, 4, queries, d), heads(2, 4, keys, d), heads(2, 4, keys, d)
    gain = torch.rand(4, dtype=torch.float64).requires_grad_()
    c = call(q, k, v, gradient=gradient, gain=gain, scale=0.3)
    check(KERNELS[kernel].attend, c, rows=attention_rows(q, k, v, scale=0.3), leaves=[q, k, v, gain])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_causal_and_grouped_heads(kernel: str, gradient: str) -> None:
    q, k, v = heads(2, 6, 9, 16), heads(2, 2, 9, 16), heads(2, 2, 9, 16)
    c = call(q, k, v, gradient=gradient, is_causal=True, enable_gqa=True)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    check(KERNELS[kernel].attend, c, rows=attention_rows(q, k, v, mask), leaves=[q, k, v])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_dropout(kernel: str, gradient: str) -> None:
    """The kernel's own mask enters `A`, and so the norm; some rows lose everything."""
    q, k, v = heads(2, 3, 5, 16), heads(2, 3, 5, 16), heads(2, 3, 5, 16)
    factors = dropout_factors(SEED, torch.Size([2, 3, 5, 5]), 0.6)
    weights = (q @ k.mT / 4).softmax(-1) * factors
    rows = weights @ v
    assert (rows.detach().norm(dim=-1) == 0).any()
    c = call(q, k, v, gradient=gradient, dropout_p=0.6)
    check(KERNELS[kernel].attend, c, rows=rows, leaves=[q, k, v])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("shape", [(1, 4, 7, 9), (7, 9), (2, 1, 1, 9), (2, 4, 7, 16)])
def test_the_bias_of_memory_efficient_attention_has_a_gradient(gradient: str, shape: tuple[int, ...]) -> None:
    keys = shape[-1]
    q, k, v = heads(2, 4, 7, 24), heads(2, 4, keys, 24), heads(2, 4, keys, 24)
    bias = torch.randn(shape, dtype=torch.float64).requires_grad_()
    c = call(q, k, v, gradient=gradient, attn_mask=bias)
    check(EFFICIENT.attend, c, rows=attention_rows(q, k, v, bias), leaves=[q, k, v, bias])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_fully_masked_rows_keep_the_sentinel_of_the_kernel(gradient: str) -> None:
    q, k, v = heads(2, 4, 7, 24), heads(2, 4, 9, 24), heads(2, 4, 9, 24)
    mask = torch.rand(2, 4, 7, 9) > 0.4
    mask[0, 1, 2] = False
    c = call(q, k, v, gradient=gradient, attn_mask=mask)
    check(EFFICIENT.attend, c, rows=attention_rows(q, k, v, mask), leaves=[q, k, v])
    assert (EFFICIENT.attend(c)[0, 1, 2] == 0).all()


@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_an_additive_mask_in_cudnn_and_head_dimensions_that_flash_must_fill_up(kernel: str) -> None:
    q, k, v = heads(1, 2, 5, 12), heads(1, 2, 5, 12), heads(1, 2, 5, 12)
    bias = torch.randn(5, 5, dtype=torch.float64) if kernel == "cudnn" else None
    c = call(q, k, v, attn_mask=bias)
    check(KERNELS[kernel].attend, c, rows=attention_rows(q, k, v, bias), leaves=[q, k, v])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_short_rows_in_float16(kernel: str, gradient: str) -> None:
    q, k = heads(1, 2, 9, 16, dtype=torch.float16), heads(1, 2, 9, 16, dtype=torch.float16)
    v = (torch.randn(1, 2, 9, 16) * 3e-4).half().requires_grad_()
    out = KERNELS[kernel].attend(call(q, k, v, gradient=gradient))
    weight = torch.randn(1, 2, 9, 16).half()
    grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    rows = attention_rows(*exact)
    assert rows.norm(dim=-1).min() < 2**-10
    expected = diagonal_product(rows, constant=gradient == "stop", eps=default_eps(torch.float16))
    for actual, wanted in zip(grads, torch.autograd.grad((expected * weight.double()).sum(), exact), strict=True):
        assert relative_error(actual.double(), wanted) <= 0.01


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_fullgraph_compile(kernel: str, gradient: str, dynamic: bool) -> None:
    """The operators' own shapes under a compiler, and what is carried from one direction to the other."""
    q, k, v = (heads(2, 4, 7, 12, dtype=torch.float32) for _ in range(3))
    c = call(q, k, v, gradient=gradient)
    weight = torch.randn(2, 4, 7, 12)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return KERNELS[kernel].attend(replace(c, q=q, k=k, v=v))

    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected, actual = attend(q, k, v), compiled(q, k, v)
    assert relative_error(actual, expected) <= 1e-6
    grads = [torch.autograd.grad(out, (q, k, v), weight) for out in (expected, actual)]
    for wanted, got in zip(*grads, strict=True):
        assert relative_error(got, wanted) <= 1e-5


def test_what_no_kernel_supports() -> None:
    x = torch.randn(1, 2, 3, 8)
    assert unsupported_on("cpu", call(x, x, x)) is None
    assert "must be on cuda" in unsupported_on("cuda", call(x, x, x))
    assert "too large" in unsupported_on("cpu", call(x, x, x, eps=0.1))
