import itertools

import pytest
import torch
from torch import Tensor

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.equilibration import default_eps
from preconditioned_attention.ops import AttentionInputs, dispatch
from tests.helpers.budgets import budgets, packed


def call_of(inputs: list[Tensor], options: dict) -> AttentionInputs:
    q, k, v = inputs
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    defaults |= {"gradient": "full", "gain": None, "eps": default_eps(q.dtype)}
    return AttentionInputs(q=q, k=k, v=v, **defaults | options)


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
SHAPES = [(7, 24), (49, 48), (197, 64), (49, 80), (7, 128), (49, 256), (1000, 64)]


def masked(kind: str, length: int, dtype: torch.dtype) -> tuple[dict, Tensor | None]:
    """Options of the call, and the mask as the float64 reference takes it."""
    added = torch.randn(length, length, device="cuda").to(dtype)
    boolean = torch.rand(length, length, device="cuda") > 0.3
    return {
        "none": ({}, None),
        "causal": ({"is_causal": True}, torch.ones(length, length, dtype=torch.bool, device="cuda").tril()),
        "boolean": ({"attn_mask": boolean}, boolean),
        "float": ({"attn_mask": added}, added.double()),
        "learned": ({"attn_mask": added.clone().requires_grad_()}, added.double()),
    }[kind]


@GPU
@pytest.mark.parametrize(("length", "d"), SHAPES)
@pytest.mark.parametrize("backend", ["auto", "flash", "efficient", "cudnn"])
def test_error_budget(backend: str, length: int, d: int) -> None:
    """On a GPU: every kernel that serves the call. What a kernel refuses is refused with a reason."""
    dtypes, gradients = (torch.float32, torch.bfloat16, torch.float16), ("full", "stop")
    kinds = ("none", "causal", "boolean", "float", "learned")
    for dtype, gradient, kind in itertools.product(dtypes, gradients, kinds):
        inputs = packed(1, 2, length, d, dtype, "cuda")
        weight = torch.randn(1, 2, length, d, dtype=torch.float64, device="cuda").to(dtype).double()
        options, exact_mask = masked(kind, length, dtype)
        if backend != "auto" and dispatch.ON_CUDA[backend].unsupported_reason(call_of(inputs, options)):
            with pytest.raises(ValueError, match="does not support this call: "):
                preconditioned_attention(*inputs, **options, gradient=gradient, backend=backend)
            continue
        for error, allowed in budgets(inputs, weight, exact_mask, gradient, backend, **options):
            assert error <= allowed, (dtype, gradient, kind)


@GPU
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_the_gradient_of_a_bias(gradient: str) -> None:
    q, k, v = packed(2, 3, 33, 32, torch.float32, "cuda")
    bias = torch.randn(3, 33, 33, device="cuda", requires_grad=True)
    grads = []
    for backend in ("efficient", "reference"):
        out = preconditioned_attention(q, k, v, bias[None], gradient=gradient, backend=backend)
        grads.append(torch.autograd.grad(out.cos().sum(), bias)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)
