"""CUDA flash attention, re-normalised. See `rows` for the identity and `renormalised` for how it becomes a function."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call
from .cuda import kernel_refusal
from .renormalised import Inputs, Options, Saved, renormalised, written_out

_forward = torch.ops.aten._scaled_dot_product_flash_attention.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward.default

_MULTIPLE = 8  # of which the kernel wants the head dimension to be


def refusal(call: Call) -> str | None:
    """Why this backend cannot serve the call, or None."""
    return kernel_refusal(call, torch.backends.cuda.can_use_flash_attention)


def _kernel_forward(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, _ = inputs
    a, lse, _, _, _, _, seed, offset, _ = _forward(
        q, k, v, options.dropout_p, options.is_causal, False, scale=options.scale
    )
    return a, lse, seed, offset


def _kernel_backward(dout: Tensor, inputs: Inputs, saved: Saved, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, _ = inputs
    out = written_out(saved.out, dout)
    no_packing = (None, None, q.shape[2], k.shape[2])
    dq, dk, dv = _backward(
        dout, q, k, v, out, saved.lse, *no_packing, options.dropout_p, options.is_causal, *saved.state,
        scale=options.scale,
    )  # fmt: skip
    return dq, dk, dv


_attend = renormalised(_kernel_forward, _kernel_backward)


def attend(call: Call) -> Tensor:
    """`C A`; the call must be one that :func:`refusal` has nothing against.

    Head dimensions that are no multiple of 8 are filled up with zeros, which change neither scores nor norms.
    """
    d = call.q.shape[-1]
    missing = -d % _MULTIPLE
    if missing == 0:
        return _attend(call)
    q, k, v = (F.pad(x, (0, missing)) for x in (call.q, call.k, call.v))
    scale = 1 / math.sqrt(d) if call.scale is None else call.scale  # of the head dimension before the filling
    return _attend(replace(call, q=q, k=k, v=v, scale=scale))[..., :d]
