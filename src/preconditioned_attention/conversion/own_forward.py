"""An instance's own `forward`, which comes before its class's: which of them are known, and how they follow a class.

Accelerate keeps the old forward as `module._old_forward`, a bound method, and puts a partial of its own in its place;
taking its hook off leaves the bound method. Both run what the class's forward was when they were made, so they are
bound anew when a class is swapped. Any other forward of an instance computes what no adapter has read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

_KEPT = ("forward", "_old_forward")


def own_forward_refusal(module: nn.Module) -> str | None:
    """Why ``module`` cannot be converted with the forward that it has of its own, or None."""
    forward = _under_accelerate(module)
    if forward is None or _is_class_forward(forward, module):
        return None
    return (
        f"an instance's own forward: {_name(forward)} stands before its class's, and what it computes is not known; "
        "take it away (del module.forward), convert, and patch or wrap the converted module after that"
    )


def is_compiled(function: object) -> bool:
    """Whether `torch.compile` made this function."""
    return hasattr(function, "_torchdynamo_orig_callable")


def own_forwards(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """What the instance holds in place of its class's forward, Accelerate's old one included."""
    for name in _KEPT:
        if name in vars(module):
            yield vars(module)[name]


def follow_class(module: nn.Module, before: type[nn.Module]) -> None:
    """Bind anew, after its class was ``before``, every forward of its own that is the class's."""
    new = MethodType(type(module).forward, module)
    for name in _KEPT:
        own = vars(module).get(name)
        if _binds(own, before.forward, module):
            vars(module)[name] = new
        elif isinstance(own, functools.partial) and _binds(vars(own).get("__wrapped__"), before.forward, module):
            vars(own)["__wrapped__"] = new  # where signatures are read off


def kept_forward(module: nn.Module) -> str | None:
    """Why the present class of ``module`` cannot be taken away, or None: an unknown forward holds its own inside."""
    forward = _under_accelerate(module)
    if forward is None or _is_class_forward(forward, module):
        return None
    if all(found is not type(module).forward for found in _inside(forward, set())):
        return None
    return (
        f"a forward of its own, {_name(forward)}, was bound after the conversion and holds the converted one; undo "
        "what bound it, or take it away (del module.forward), then restore"
    )


def _under_accelerate(module: nn.Module) -> Callable[..., Any] | None:
    """The module's own forward, out of what Accelerate has wrapped it in."""
    forward: Callable[..., Any] | None = vars(module).get("forward")
    return vars(module)["_old_forward"] if _is_accelerates(forward, module) else forward


def _is_accelerates(forward: object, module: nn.Module) -> bool:
    return (
        isinstance(forward, functools.partial)
        and getattr(forward.func, "__module__", None) == "accelerate.hooks"
        and forward.args[:1] == (module,)
        and {"_hf_hook", "_old_forward"} <= set(vars(module))
    )


def _is_class_forward(forward: object, module: nn.Module) -> bool:
    return _binds(forward, type(module).forward, module)


def _binds(forward: object, function: object, module: nn.Module) -> bool:
    return isinstance(forward, MethodType) and forward.__self__ is module and forward.__func__ is function


def _inside(function: Any, seen: set[int]) -> Iterator[object]:
    """``function`` and every function that it binds, wraps, closes over or is a partial of."""
    if id(function) in seen:
        return
    seen.add(id(function))
    yield function
    parts: list[Any] = [getattr(function, "__wrapped__", None)]
    if isinstance(function, MethodType):
        parts.append(function.__func__)
    elif isinstance(function, functools.partial):
        parts += [function.func, *function.args, *function.keywords.values()]
    elif isinstance(function, FunctionType):
        parts += [cell.cell_contents for cell in function.__closure__ or ()]
    for part in parts:
        if isinstance(part, MethodType | functools.partial | FunctionType):
            yield from _inside(part, seen)


def _name(forward: Any) -> str:
    inner = forward.func if isinstance(forward, functools.partial) else forward
    name = getattr(inner, "__qualname__", type(inner).__name__)
    return f"{getattr(inner, '__module__', '?')}.{name}"
