"""What torch.fx and TorchScript make of code of ours: a call is recorded whole, as one node, and is not compiled.

A symbol of torch.fx has neither sizes nor options to look at. So a graph calls our functions and modules as it calls
PyTorch's own, and they compute when it runs; a module is called with all its state, its mark included.
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
    """Whether one of ``values`` stands for what a graph of torch.fx will compute."""
    return any(isinstance(value, Proxy) for value in values)


def one_call(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator for a function that graphs shall call and TorchScript shall refuse."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Proxy):
                recorded: Result = handle_torch_function(call, (value,), *args, **kwargs)
                return recorded
        return function(*args, **kwargs)

    vars(call)["__script_unsupported"] = NO_SCRIPT
    _own_code(call, function)
    return call


def one_node(method: Method) -> Method:
    """Decorator for a module's method that graphs shall call, on the module, which they then hold.

    The method and not the module: hooks of the module act on symbols while it is traced, and once is enough.
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
    """Have tracers look into a module of `torch.nn`, which they record as one call as a rule: they go by this name."""
    if yes:
        vars(module)["__module__"] = __name__
    else:
        vars(module).pop("__module__", None)
