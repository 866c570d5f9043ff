"""The gradients of a re-normalized kernel that can be differentiated again: by autograd, through the definition.

PyTorch's flash-type kernels have no second derivative. With ``create_graph=True`` the gradients come from the
reference's scores and weights, which can be differentiated any number of times, at the reference's cost. Without it
this costs nothing: what it needs, the inputs, is saved anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from ...equilibration import equilibrate_by_formula
from ..inputs import AttentionInputs
from ..reference import attention_rows

Gradients = tuple[Tensor | None, ...]

_DRAWN_AGAIN = (
    "the gradients of preconditioned attention with dropout_p > 0 cannot be differentiated where a fused CUDA kernel "
    "drew the dropout mask: it cannot be drawn again. Pass dropout_p=0.0, or have scores and weights computed by "
    "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
)


def gradients(
    kernel: Callable[[], Gradients],
    definition: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    dy: Tensor,
    dropout_p: float,
) -> Gradients:
    """Those of ``definition(*inputs)``, which can be differentiated; with dropout the kernel's, which raise then."""
    if dropout_p == 0:
        return _through(definition, inputs, dy)
    with torch.no_grad():
        grads = kernel()
    linked: Gradients = _Refused.apply(len(grads), *grads, *inputs, dy)
    return linked


def differentiable(inputs: AttentionInputs) -> Tensor:
    """`C A` in operations that have every derivative; without the gain, which is applied outside."""
    rows = attention_rows(inputs)
    return equilibrate_by_formula(rows, gradient=inputs.gradient, eps=inputs.eps, gain=None).to(inputs.q.dtype)


def _through(definition: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor) -> Gradients:
    """Through a view of every input: one may have been computed from another, or be the same tensor."""
    views = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x in views if x is not None and x.requires_grad]
    out = definition(*views)
    grads = iter(torch.autograd.grad(out, wanted, dy, create_graph=True, allow_unused=True, materialize_grads=True))
    return tuple(next(grads) if x is not None and x.requires_grad else None for x in views)


class _Refused(Function):
    """Gradients that depend on what they were computed from, so that differentiating them reaches the error."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> Gradients:
        return tuple(None if x is None else x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Gradients:
        raise RuntimeError(_DRAWN_AGAIN)
