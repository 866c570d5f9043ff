"""Forwards that tools assign to an instance, where they take precedence over the forward of its class.

Accelerate keeps the old forward as `module._old_forward`, a bound method, and assigns a partial of its own; removing
its hook leaves the bound method. The hooks of diffusers (offloading, casting, caching) keep the old forward in a record
that their partial closes over. Both call the forward of the class as it was then, so they are bound again when a class
is swapped. Any other forward of an instance is unknown, and such a module is not converted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

_RECORD = {"pre_forward", "post_forward", "forward", "original_forward"}  # what diffusers keeps of each hook


def unknown_forward_reason(module: nn.Module) -> str | None:
    """Why ``module`` cannot be converted with the forward that was assigned to it, or None."""
    forward = _innermost(module)
    if forward is None or _is_class_forward(forward, module):
        return None
    return (
        f"an instance's own forward: {_name(forward)} was assigned to this module, and what it computes is not known; "
        "remove it (del module.forward), convert, and patch or wrap the converted module after that"
    )


def is_compiled(function: object) -> bool:
    """Whether `torch.compile` made this function."""
    return hasattr(function, "_torchdynamo_orig_callable")


def instance_forwards(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """The forward that was assigned to the instance, and those that Accelerate and diffusers keep behind it."""
    for holder, name in _places(module):
        yield holder[name]


def rebind_forwards(module: nn.Module, before: type[nn.Module]) -> None:
    """Bind the forwards of the instance that are those of its former class ``before`` to its present class."""
    new = MethodType(type(module).forward, module)
    for holder, name in list(_places(module)):
        own = holder[name]
        if _binds(own, before.forward, module):
            holder[name] = new
        elif isinstance(own, functools.partial) and _binds(vars(own).get("__wrapped__"), before.forward, module):
            vars(own)["__wrapped__"] = new  # `inspect.signature` reads it


def kept_forward_reason(module: nn.Module) -> str | None:
    """Why the class of ``module`` cannot be swapped back, or None: an unknown forward calls the converted one."""
    forward = _innermost(module)
    if forward is None or _is_class_forward(forward, module):
        return None
    if all(found is not type(module).forward for found in _inside(forward, set())):
        return None
    return (
        f"a forward of its own, {_name(forward)}, was bound after the conversion and holds the converted one; undo "
        "what bound it, or remove it (del module.forward), then restore"
    )


def may_skip_forward(module: nn.Module) -> bool:
    """Whether a hook of diffusers may return a cached output instead of calling the forward."""
    return any(name == "original_forward" for _, name in _places(module))


def _places(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the forwards of the instance are kept, outermost first: a dict, and the key in it."""
    place: tuple[dict[str, Any], str] | None = (vars(module), "forward")
    seen: set[tuple[int, str]] = set()
    while place is not None and place[1] in place[0] and (id(place[0]), place[1]) not in seen:
        seen.add((id(place[0]), place[1]))
        yield place
        place = _behind(place[0][place[1]], module)


def _behind(forward: object, module: nn.Module) -> tuple[dict[str, Any], str] | None:
    """Where Accelerate or diffusers keeps the forward that ``forward``, which it assigned, replaces."""
    if not isinstance(forward, functools.partial) or forward.args[:1] != (module,):
        return None
    made_by = getattr(forward.func, "__module__", None)
    if made_by == "accelerate.hooks" and {"_hf_hook", "_old_forward"} <= set(vars(module)):
        return vars(module), "_old_forward"
    if made_by == "diffusers.hooks.hooks":
        for record in _closed_over(forward.func):
            if set(getattr(record, "__dict__", ())) >= _RECORD:
                return vars(record), "forward" if record.original_forward is None else "original_forward"
    return None


def _innermost(module: nn.Module) -> Callable[..., Any] | None:
    """The forward inside those that Accelerate and diffusers have assigned; None if none was assigned."""
    forward = None
    for holder, name in _places(module):
        forward = holder[name]
    return forward


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
    parts: list[Any] = [getattr(function, "__wrapped__", None), *_closed_over(function)]
    if isinstance(function, MethodType):
        parts.append(function.__func__)
    elif isinstance(function, functools.partial):
        parts += [function.func, *function.args, *function.keywords.values()]
    for part in parts:
        if isinstance(part, MethodType | functools.partial | FunctionType):
            yield from _inside(part, seen)


def _closed_over(function: object) -> list[Any]:
    cells = function.__closure__ or () if isinstance(function, FunctionType) else ()
    return [cell.cell_contents for cell in cells]


def _name(forward: Any) -> str:
    inner = forward.func if isinstance(forward, functools.partial) else forward
    name = getattr(inner, "__qualname__", type(inner).__name__)
    return f"{getattr(inner, '__module__', '?')}.{name}"
