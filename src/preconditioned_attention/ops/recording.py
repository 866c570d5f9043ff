"""Whether a call is recorded for other tools to read, and so has to be made of what all of them know."""

from __future__ import annotations

import torch
from torch._ops import _get_dispatch_mode_pre_dispatch

_PROXY = torch._C._TorchDispatchModeKey.PROXY


def recorded() -> bool:
    """Whether `torch.export`, `torch.jit.trace` or `make_fx` is writing down the call.

    What they write is lowered by others, who know `scaled_dot_product_attention` and plain arithmetic. They know no
    operators of ours, and of PyTorch's flash kernel only the first result: its decomposition returns the attention
    weights in the place of the row constants.
    """
    if torch.compiler.is_compiling():
        return exporting()
    modes = torch._C._get_dispatch_mode(_PROXY), _get_dispatch_mode_pre_dispatch(_PROXY)
    return torch.jit.is_tracing() or modes != (None, None)


def exporting() -> bool:
    """Whether `torch.export` is at work. Its own question PyTorch 2.11 answers with yes in all that it compiles."""
    return bool(torch.compiler._is_exporting_flag)
