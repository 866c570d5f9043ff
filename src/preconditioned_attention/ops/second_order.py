"""The gradients of a re-normalised kernel for those who differentiate them: by autograd, through the definition.

PyTorch's flash-type kernels have no second derivative. ``create_graph=True`` asks for one: then the gradients come from
the reference's scores and weights, which are linked to the inputs and can be differentiated as often as somebody likes,
at the reference's cost. Nobody else pays anything: what it takes, the inputs, is saved anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from ..equilibration import equilibrate_by_formula
from . import reference
from .call import Call

Gradients = tuple[Tensor | None, ...]

_DRAWN_AGAIN = (
    "the gradients of preconditioned attention with dropout_p > 0 cannot be differentiated where a fused CUDA kernel "
    "drew the dropout mask: nothing else can draw it again. Pass dropout_p=0.0, or have scores and weights written "
    "out by torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
)


def asked_for() -> bool:
    """Whether the backward pass that runs now is being differentiated; compiled ones PyTorch refuses to."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


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


def attend(call: Call) -> Tensor:
    """`C A` in operations that have every derivative; without the gain, which is applied outside."""
    rows = reference.rows(call)
    return equilibrate_by_formula(rows, gradient=call.gradient, eps=call.eps, gain=None).to(call.q.dtype)


def _through(definition: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor) -> Gradients:
    """Through a view of every input: one may have been computed from another, or be the same tensor."""
    views = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x in views if x is not None and x.requires_grad]
    out = definition(*views)
    grads = iter(torch.autograd.grad(out, wanted, dy, create_graph=True, allow_unused=True, materialize_grads=True))
    return tuple(next(grads) if x is not None and x.requires_grad else None for x in views)


class _Refused(Function):
    """Gradients linked to what they came from: an error behind a detached leaf would never be met."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> Gradients:
        return tuple(None if x is None else x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Gradients:
        raise RuntimeError(_DRAWN_AGAIN)
