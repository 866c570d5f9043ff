"""An instance's own `forward`, which comes before its class's: which of them are known, and how they follow a class.

Accelerate keeps the old forward as `module._old_forward`, a bound method, and puts a partial of its own in its place;
taking its hook off leaves the bound method. The hooks of diffusers (offloading, casting, caching) keep it in a record
that their partial closes over. Each runs what the class's forward was when it was made, so it is bound anew when a
class is swapped. Any other forward of an instance computes what no adapter has read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

_RECORD = {"pre_forward", "post_forward", "forward", "original_forward"}  # what diffusers keeps of each hook


def unknown_forward_reason(module: nn.Module) -> str | None:
    """Why ``module`` cannot be converted with the forward that it has of its own, or None."""
    forward = _innermost(module)
    if forward is None or _is_class_forward(forward, module):
        return None
    return (
        f"an instance's own forward: {_name(forward)} stands before its class's, and what it computes is not known; "
        "take it away (del module.forward), convert, and patch or wrap the converted module after that"
    )


def is_compiled(function: object) -> bool:
    """Whether `torch.compile` made this function."""
    return hasattr(function, "_torchdynamo_orig_callable")


def instance_forwards(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """What the instance holds in place of its class's forward, and what is kept behind that by tools that are known."""
    for holder, name in _places(module):
        yield holder[name]


def rebind_forwards(module: nn.Module, before: type[nn.Module]) -> None:
    """Bind anew, after its class was ``before``, every forward of its own that is the class's."""
    new = MethodType(type(module).forward, module)
    for holder, name in list(_places(module)):
        own = holder[name]
        if _binds(own, before.forward, module):
            holder[name] = new
        elif isinstance(own, functools.partial) and _binds(vars(own).get("__wrapped__"), before.forward, module):
            vars(own)["__wrapped__"] = new  # where signatures are read off


def kept_forward_reason(module: nn.Module) -> str | None:
    """Why the present class of ``module`` cannot be taken away, or None: an unknown forward holds its own inside."""
    forward = _innermost(module)
    if forward is None or _is_class_forward(forward, module):
        return None
    if all(found is not type(module).forward for found in _inside(forward, set())):
        return None
    return (
        f"a forward of its own, {_name(forward)}, was bound after the conversion and holds the converted one; undo "
        "what bound it, or take it away (del module.forward), then restore"
    )


def may_skip_forward(module: nn.Module) -> bool:
    """Whether a hook of diffusers stands before the forward that returns what it has kept instead, as caches do."""
    return any(name == "original_forward" for _, name in _places(module))


def _places(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Where forwards of the instance are held, outermost first: a dict, and the name in it."""
    place: tuple[dict[str, Any], str] | None = (vars(module), "forward")
    seen: set[tuple[int, str]] = set()
    while place is not None and place[1] in place[0] and (id(place[0]), place[1]) not in seen:
        seen.add((id(place[0]), place[1]))
        yield place
        place = _behind(place[0][place[1]], module)


def _behind(forward: object, module: nn.Module) -> tuple[dict[str, Any], str] | None:
    """Where a tool that is known keeps the forward that ``forward``, its own, stands for."""
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
    """The module's own forward, out of what tools that are known have wrapped it in."""
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
