"""What stands in the place of PyTorch's `scaled_dot_product_attention` in a call.

Libraries bring in their attention by assigning another function to `torch.nn.functional.scaled_dot_product_attention`
(context parallelism, quantized attention) or by a `TorchFunctionMode` that looks out for it (sequence parallelism of
diffusion models). Neither sees the kernels that re-normalized attention calls. So such a call is computed by plain
attention, which reaches the replacement, and then by its rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from .tracing import is_recorded

SDPA = torch._C._nn.scaled_dot_product_attention
"""PyTorch's own, whatever `torch.nn.functional` holds."""


def replacement() -> str | None:
    """What may compute `scaled_dot_product_attention` in the place of PyTorch's kernels, in words; None: nothing."""
    current = F.scaled_dot_product_attention
    if current is not SDPA:
        name = getattr(current, "__qualname__", type(current).__qualname__)
        where = getattr(current, "__module__", type(current).__module__)
        return (
            f"torch.nn.functional.scaled_dot_product_attention was replaced by {where}.{name}, which it would not call"
        )
    modes = _modes()
    if modes:
        return f"the TorchFunctionMode {modes[-1]} is active, which may replace scaled_dot_product_attention alone"
    return None


def _modes() -> list[str]:
    """The classes of the active modes, but for that of `torch.device`, and for those that record a call for export."""
    if torch._C._len_torch_function_stack() == 0 or is_recorded():
        return []
    return [type(mode).__qualname__ for mode in _get_current_function_mode_stack() if type(mode) is not DeviceContext]
