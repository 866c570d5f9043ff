"""The hooks that scale rows, and the hook that checks that they are still attached."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._symbolic import is_symbolic, trace_into
from ..layers import Preconditioner
from ..layers.call_record import raise_while_tracing
from .layout import Layout
from .saving.unpickling import Unpickled


class RowHook(Unpickled):
    """A forward pre-hook for the first module that is called with the heads' outputs, as its first argument.

    It is a class and not a closure so that converted models can be pickled and copied: the hook of a copy has the
    preconditioner of the copy.
    """

    def __init__(self, preconditioner: Preconditioner, layout: Layout) -> None:
        self.preconditioner = preconditioner
        self.layout = layout

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Scale the rows of the first argument."""
        if not torch.compiler.is_dynamo_compiling():  # torch 2.11 cannot trace it
            trace_into(module, False)
        if not args:
            raise TypeError(
                f"the heads' outputs are to be the first argument of this {type(module).__name__}, and it was called "
                "without positional arguments; attach elsewhere, or register a ClassSwap"
            )
        first, *rest = args
        sharded = not hasattr(first, "device_mesh") and hasattr(getattr(module, "weight", None), "device_mesh")
        layout = self.layout.of_some_heads() if sharded else self.layout
        # torch.export records the modules around a call, and no part of this one can hold one that is outside of it.
        scale = self.preconditioner.forward if torch.compiler.is_exporting() else self.preconditioner
        return layout.apply(scale, first), *rest


# These compute the same in training and evaluation, so torch.fx may trace into them.
_SAME_IN_TRAINING = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.Identity)


class AttachmentGuard:
    """A forward pre-hook on the attention that raises if a hook target has lost its hook.

    Tools that wrap a projection (LoRA) or replace it (merging LoRA, quantization) do not move hooks.
    """

    def __init__(self, targets: tuple[str, ...]) -> None:
        self.targets = targets

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Check every hook target; compiled code was checked when it was traced."""
        compiling = torch.compiler.is_compiling()
        for target in self.targets:
            child = module.get_submodule(target)
            if not compiling:
                trace_into(child, is_symbolic(*args) and isinstance(child, _SAME_IN_TRAINING))
            if not any(isinstance(hook, RowHook) for hook in child._forward_pre_hooks.values()):
                _refuse(
                    f"the preconditioner of this {type(module).__name__} is no longer attached: its {target!r} has "
                    "been replaced since the conversion, by LoRA or its merging, by quantization or the like. Call "
                    "restore_(model), and precondition_(model) after that step"
                )


def _refuse(message: str) -> None:
    if torch.compiler.is_dynamo_compiling():
        raise_while_tracing(message)
    raise RuntimeError(message)


class OutputHook(Unpickled):
    """A forward hook for a module that returns the heads' outputs, alone or first in a tuple."""

    def __init__(self, preconditioner: Preconditioner, layout: Layout) -> None:
        self.preconditioner = preconditioner
        self.layout = layout

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Scale the rows of the output."""
        if _is_tensor(output):
            return self.layout.apply(self.preconditioner, output)
        if not (isinstance(output, tuple | list) and output and _is_tensor(output[0])):
            raise TypeError(
                f"this {type(module).__name__} is to return the heads' outputs, alone or first in a tuple, and it "
                f"returned {type(output).__name__}; attach elsewhere, or register a ClassSwap"
            )
        all_of_it = [self.layout.apply(self.preconditioner, output[0]), *output[1:]]
        return output._make(all_of_it) if hasattr(output, "_make") else type(output)(all_of_it)


def _is_tensor(x: object) -> bool:
    """Whether ``x`` is a tensor, or the proxy of one while torch.fx traces."""
    return isinstance(x, Tensor) or is_symbolic(x)
