"""The check of a backend's result before it is timed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import BackendName, Gradient
from ...functional import preconditioned_attention


class WrongResultError(RuntimeError):
    """A backend's error relative to the float64 reference is larger than rounding explains."""


def check_result(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, gradient: Gradient, backend: BackendName) -> None:
    """Compare output and gradients of ``backend`` with the float64 reference.

    The relative error may be up to one rounding unit plus twice the larger of two errors: that of plain attention
    relative to its own float64 reference, and that of the composition.

    Raises:
        WrongResultError: it is larger; the message names the tensor and the error.
    """
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    weight = torch.randn(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)

    def ours(x: list[Tensor], name: BackendName) -> Tensor:
        return preconditioned_attention(x[0], x[1], x[2], is_causal=is_causal, gradient=gradient, backend=name)

    reference = _with_gradients(ours(exact, "reference"), exact, weight)
    plain_reference = _with_gradients(_plain(exact, is_causal), exact, weight)
    plain = _errors(_with_gradients(_plain(inputs, is_causal), inputs, weight), plain_reference)
    composed = _errors(_with_gradients(ours(inputs, "composition"), inputs, weight), reference)
    actual = _errors(_with_gradients(ours(inputs, backend), inputs, weight), reference)
    unit = torch.finfo(q.dtype).eps
    for name, error, p, c in zip(("output", "dq", "dk", "dv"), actual, plain, composed, strict=True):
        allowed = 2 * max(p, c) + unit
        if not error <= allowed:
            raise WrongResultError(
                f"backend {backend!r}, gradient {gradient!r}, {q.dtype}, shape {tuple(q.shape)}: relative error of "
                f"{name} is {error:.3g}, allowed {allowed:.3g}; it is not timed"
            )


def _plain(x: list[Tensor], is_causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(x[0], x[1], x[2], is_causal=is_causal)


def _with_gradients(out: Tensor, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad((out * weight.to(out.dtype)).sum(), inputs)]


def _errors(actual: list[Tensor], exact: list[Tensor]) -> list[float]:
    pairs = zip(actual, exact, strict=True)
    return [((a.double() - e).norm() / e.norm().clamp_min(1e-300)).item() for a, e in pairs]
