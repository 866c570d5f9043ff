"""torch.fx and TorchScript: a call of ours is recorded as one node of a graph, and is not compiled by TorchScript.

A `Proxy` of torch.fx has no sizes to check. So a graph calls our functions and modules as it calls PyTorch's own, and
they compute when it runs; a module is called with all its state, its mark included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from torch import nn
from torch.fx import Proxy
from torch.overrides import handle_torch_function

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Method = TypeVar("Method", bound=Callable[..., Any])

NO_SCRIPT = (
    "torch.jit.script cannot compile preconditioned attention: use torch.export.export(model, inputs) or "
    "torch.jit.trace(model, inputs) on the converted model"
)


def is_symbolic(*values: object) -> bool:
    """Whether one of ``values`` is a `Proxy` of torch.fx."""
    return any(isinstance(value, Proxy) for value in values)


def not_scriptable(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator for a function that TorchScript refuses, with `NO_SCRIPT` as the reason."""
    vars(function)["__script_unsupported"] = NO_SCRIPT
    return function


def one_call(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator for a function that is one node of a graph and that TorchScript refuses."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Proxy):
                recorded: Result = handle_torch_function(call, (value,), *args, **kwargs)
                return recorded
        return function(*args, **kwargs)

    _own_code(call, function)
    return not_scriptable(call)


def one_node(method: Method) -> Method:
    """Decorator for a module's method that is one node of a graph: a call of the method of the module, which it holds.

    The method and not the module, because hooks of the module run while it is traced, and would run again.
    """

    @functools.wraps(method)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Proxy) and getattr(value.tracer, "root", None) is not self:
                return _call_method(value.tracer, self, method.__name__, args, kwargs)
        return method(self, *args, **kwargs)

    _own_code(call, method)
    return cast(Method, call)


def _own_code(wrapper: Any, wrapped: Callable[..., Any]) -> None:
    """A code object for this wrapper alone: torch.compile counts by code object how often it has compiled."""
    wrapper.__code__ = wrapper.__code__.replace(co_name=wrapped.__name__)


def _call_method(tracer: Any, module: nn.Module, name: str, args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
    holder = tracer.create_proxy("get_attr", tracer.path_of_module(module), (), {})
    return tracer.create_proxy("call_method", name, (holder, *args), kwargs)


def trace_into(module: nn.Module, yes: bool) -> None:
    """Have torch.fx trace into a module of `torch.nn`, or again record it as one node: it decides by ``__module__``."""
    if yes:
        vars(module)["__module__"] = __name__
    else:
        vars(module).pop("__module__", None)
