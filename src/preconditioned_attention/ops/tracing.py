"""Whether a call is being traced, and conditions on sizes that are symbols while it is compiled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import _get_dispatch_mode_pre_dispatch

PROXY_MODE = torch._C._TorchDispatchModeKey.PROXY


def is_recorded() -> bool:
    """Whether `torch.export`, `torch.jit.trace` or `make_fx` is recording the call.

    What they record is lowered by other tools, which know `scaled_dot_product_attention` and plain arithmetic. They
    know no operators of ours, and of PyTorch's flash kernel only the first result: its decomposition returns the
    attention weights in the place of the row constants.
    """
    if torch.compiler.is_compiling():
        return is_exporting()
    modes = torch._C._get_dispatch_mode(PROXY_MODE), _get_dispatch_mode_pre_dispatch(PROXY_MODE)
    return torch.jit.is_tracing() or modes != (None, None)


def is_exporting() -> bool:
    """Whether `torch.export` is tracing. PyTorch 2.11's `torch.compiler.is_exporting` is true whenever it compiles."""
    return bool(torch.compiler._is_exporting_flag)


def hold_constant(norm: Tensor) -> Tensor:
    """``norm`` without a derivative; in what is recorded also after `run_decompositions()`, which drops `detach`.

    The derivative of rounding to integers is zero, and from `2^23` on (`2^52` in float64) floating-point numbers are
    integers: rounding changes none of `norm * 2^73` (`2^452`) from `2^-50` to `2^54` (`2^-400` to `2^571`).
    """
    norm = norm.detach()
    if not is_recorded():
        return norm
    shift = 2.0**452 if norm.dtype == torch.float64 else 2.0**73
    return (norm * shift).round() / shift


def guard_or_false(condition: bool) -> bool:
    """``condition`` on sizes; False, without a guard, where a compiler cannot tell."""
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return bool(guard_or_false(condition))
