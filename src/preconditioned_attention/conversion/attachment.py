"""Attaching preconditioners to attention modules, finding them, and detaching them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..config import PreconditionConfig
from ..layers import Preconditioner
from ..layers.distributed_gain import shard_gain
from ..layers.preconditioner import drop_completed_mark
from .adapter import Adapter, HeadShape
from .class_names import class_name
from .guards.call_guard import guard, unguard
from .guards.instance_forward import rebind_forwards
from .registry import find_adapter

MakePreconditioner = Callable[[nn.Module, HeadShape], Preconditioner]

# The adapter that converted a module: another one may have been registered since. A copied module is looked up again.
_converted_by: weakref.WeakKeyDictionary[nn.Module, Adapter] = weakref.WeakKeyDictionary()


def is_preconditioned(model: nn.Module) -> bool:
    """Whether any module of ``model`` is preconditioned."""
    return next(preconditioned_modules(model), None) is not None


def preconditioned_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``(path, module)`` of every attention that has a preconditioner."""
    for path, module in model.named_modules():
        # not `hasattr`: wrappers forward attributes to the module that they wrap
        if isinstance(module._modules.get("preconditioner"), Preconditioner):
            yield path, module


def preconditioner_of(module: nn.Module) -> Preconditioner:
    """The preconditioner of one of :func:`preconditioned_modules`."""
    preconditioner = module.get_submodule("preconditioner")
    assert isinstance(preconditioner, Preconditioner), f"{type(module).__name__} is not preconditioned"
    return preconditioner


def adapter_of(module: nn.Module) -> Adapter | None:
    """The adapter that converted ``module``, or that would convert it; None if none is registered."""
    return _converted_by.get(module) or find_adapter(module)


def make_preconditioner(config: PreconditionConfig, *, marker: bool) -> MakePreconditioner:
    """A function that makes a module's preconditioner, with the device and the dtype of the module's parameters."""

    def make(module: nn.Module, shape: HeadShape) -> Preconditioner:
        like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        return Preconditioner(config, num_heads=shape.num_heads, marker=marker, device=like.device, dtype=like.dtype)

    return make


def attach_all(targets: list[tuple[nn.Module, Adapter]], make: MakePreconditioner) -> None:
    """Give every module the preconditioner that ``make`` makes for it: all of them, or none if one fails."""
    done: list[nn.Module] = []
    try:
        for module, adapter in targets:
            preconditioner = make(module, adapter.shape(module))
            preconditioner.train(module.training)
            shard_gain(module, preconditioner)
            module.add_module("preconditioner", preconditioner)
            done.append(module)
            _attach(module, adapter, preconditioner)
    except BaseException:
        for module in done:
            detach(module)
        raise


def _attach(module: nn.Module, adapter: Adapter, preconditioner: Preconditioner) -> None:
    _converted_by[module] = adapter
    plain = type(module)
    adapter.attach(module, preconditioner)
    rebind_forwards(module, plain)
    guard(module, preconditioner)
    module.register_load_state_dict_pre_hook(drop_completed_mark)


def detach(module: nn.Module) -> None:
    """Remove the preconditioner of one module."""
    adapter = adapter_of(module)
    if adapter is None:
        raise ValueError(
            f"{class_name(type(module))} was converted by an adapter that is not registered here; import the module "
            "that registers it, then restore"
        )
    unguard(module)
    hooks = module._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if getattr(hook, "hook", None) is drop_completed_mark]:
        del hooks[key]
    converted = type(module)
    adapter.detach(module)
    rebind_forwards(module, converted)
    _converted_by.pop(module, None)
    del module.preconditioner
