"""Two hooks on a converted attention, which raise in a forward pass that does not call the preconditioner.

That happens when something removes the attachment after the conversion: a forward that was assigned to the instance, a
layer that replaces the hooked one, code that reads parameters and never calls the hooked module. Under torch.compile
the check runs at trace time and costs nothing afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.fx import Proxy
from torch.utils._pytree import tree_leaves

from ...layers import Preconditioner
from ...layers.call_record import CallRecord, any_traced, enter_traced_attention, leave_traced_attention
from ..registry import load_companions
from ..saving.unpickling import Unpickled
from .compile_cache import exchange_dict_types
from .instance_forward import instance_forwards, is_compiled, may_skip_forward


class ExpectCall(Unpickled):
    """A forward pre-hook on a converted attention, after which its preconditioner has to be called."""

    def __init__(self, preconditioner: Preconditioner) -> None:
        self.preconditioner = preconditioner

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Clear this thread's record of calls."""
        if torch.compiler.is_dynamo_compiling():
            enter_traced_attention()
        else:
            if self.preconditioner.calls is not None:
                self.preconditioner.calls.expect()
            load_companions()


class RequireCall:
    """A forward hook on a converted attention that raises unless its preconditioner was called.

    ``kind`` is the class of the attention after the conversion.
    """

    def __init__(self, preconditioner: Preconditioner, kind: type[nn.Module]) -> None:
        self.preconditioner = preconditioner
        self.kind = kind

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Check the record."""
        if torch.compiler.is_dynamo_compiling():
            leave_traced_attention(_message(type(module).__name__))
        elif not _was_called(self.preconditioner) and not _cannot_tell(module, output):
            raise RuntimeError(_message(type(module).__name__))


def guard(module: nn.Module, preconditioner: Preconditioner) -> None:
    """Register the two hooks on ``module``, to which an adapter has attached ``preconditioner``."""
    preconditioner.calls = CallRecord()
    module.register_forward_pre_hook(ExpectCall(preconditioner))
    module.register_forward_hook(RequireCall(preconditioner, type(module)))
    exchange_dict_types(module)


def unguard(module: nn.Module) -> None:
    """Remove the two hooks, which are found by their type: a copied model has no handles."""
    for hooks, kind in ((module._forward_pre_hooks, ExpectCall), (module._forward_hooks, RequireCall)):
        for key in [key for key, hook in hooks.items() if isinstance(hook, kind)]:
            hook = hooks.pop(key)
            if isinstance(hook, RequireCall):
                hook.preconditioner.calls = None
                exchange_dict_types(module)


def _was_called(preconditioner: Preconditioner) -> bool:
    return preconditioner.calls is None or preconditioner.calls.seen()


def guarded_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of ``module`` right after the conversion, as its guard recorded it."""
    return next((hook.kind for hook in module._forward_hooks.values() if isinstance(hook, RequireCall)), None)


def _message(attention: str) -> str:
    return (
        f"the preconditioner of this {attention} was not called in its forward pass: its forward, or the layer that "
        "the preconditioner was attached to, has been replaced or bypassed since the conversion. Call "
        "restore_(model), and precondition_(model) after that step"
    )


def _cannot_tell(module: nn.Module, output: Any) -> bool:
    """Whether the preconditioner may have been called without a record of it."""
    if any(isinstance(leaf, Proxy) for leaf in tree_leaves(output)):
        return True  # torch.fx records the call of a leaf module and does not run it
    return may_skip_forward(module) or may_be_compiled(module)


def may_be_compiled(module: nn.Module) -> bool:
    """Whether preconditioners of ``module`` may be called by compiled code, which records no calls."""
    return any_traced() and (_compiled_around() or _compiled_inside(module))


def _compiled_around() -> bool:
    """Whether this is eager code between the compiled parts of a function (a graph break)."""
    return callable(get_eval_frame_callback())


def _compiled_inside(module: nn.Module) -> bool:
    """Whether part of the module is compiled."""
    return any(
        getattr(part, "_compiled_call_impl", None) is not None
        or hasattr(part, "_orig_mod")
        or any(is_compiled(forward) for forward in (type(part).forward, *instance_forwards(part)))
        for part in module.modules()
    )
