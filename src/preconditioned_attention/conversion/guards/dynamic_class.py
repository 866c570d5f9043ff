"""Classes that other tools create for an instance at run time, as `fully_shard` and parametrizations do."""

from __future__ import annotations

import sys

from torch import nn

from ..class_names import class_name
from .call_guard import guarded_class


def base_of_dynamic_class(cls: type) -> type | None:
    """The class that ``cls`` was derived from at run time, or None.

    None if ``cls`` is an attribute of its module, or derives from `nn.Module` alone, as classes in functions do.
    """
    if _is_module_attribute(cls):
        return None
    bases = (base for base in cls.__mro__[1:] if issubclass(base, nn.Module) and base is not nn.Module)
    return next(filter(_is_module_attribute, bases), None)


def changed_class_reason(module: nn.Module) -> str | None:
    """Why the class of a converted ``module`` cannot be swapped back, or None."""
    then, now = guarded_class(module), type(module)
    if then in (None, now):
        return None
    return (
        f"its class was {then.__name__} after the conversion and is {now.__name__} now: another tool (fully_shard, a "
        "parametrization) has changed it; undo that first, or restore before it"
    )


def unknown_reason(cls: type[nn.Module], unread: str | None = None) -> str:
    """The reason in a report for attention without an adapter.

    ``unread``: why an adapter that is registered for its name does not support it, or None.
    """
    base = base_of_dynamic_class(cls)
    if base is None:
        return unread or "no adapter is registered for this class, or its forward is not the one the adapter knows"
    return (
        f"its class was made from {class_name(base)} by another tool (fully_shard, a parametrization), and no adapter "
        "knows it; convert before that"
    )


def _is_module_attribute(cls: type) -> bool:
    found: object = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls
