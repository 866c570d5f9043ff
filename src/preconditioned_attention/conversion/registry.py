"""Which adapter converts which class: keyed by class, never by guessing attribute names."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from torch import nn

from ..layers import Preconditioner

# "other": attention that leaves no rows of heads to equilibrate; its adapters refuse and say why.
Kind = Literal["softmax", "class", "pooling", "channel", "linear", "other"]

# Adapter file -> the module without which no model can hold a class of that library. The file is imported once
# that module is there, so that converting a timm model never imports transformers.
_ADAPTER_FILES = {
    "torch_nn": "torch",
    "own_layers": "preconditioned_attention.layers",
    "timm": "timm.layers",
    "timm_davit": "timm.models",
    "timm_zoo": "timm.models",
    "timm_swaps": "timm.models",
    "timm_iformer": "timm.models.iformer",
    "torchvision": "torchvision.models",
    "transformers": "transformers.modeling_utils",
    "transformers_own": "transformers.modeling_utils",
    "transformers_forms": "transformers.modeling_utils",
    "transformers_refused": "transformers.modeling_utils",
    "diffusers": "diffusers.models",
    "x_transformers": "x_transformers",
    "open_clip": "open_clip",
    "flash_attn": "flash_attn",
}


@dataclass(frozen=True)
class HeadShape:
    """How many heads an attention has and how wide each head's output is; None where it cannot be told."""

    num_heads: int | None
    head_dim: int | None


def read_int(source: object, *names: str) -> int | None:
    """The first of ``source``'s attributes ``names`` that is an integer, or None."""
    values = (getattr(source, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


class Adapter(ABC):
    """How one kind of attention module takes a :class:`Preconditioner`, and gives it back.

    A subclass is stateless: one instance serves every module. `attach` may register hooks or swap the instance's
    class; whatever it does, `detach` undoes, bit for bit.
    """

    kind: ClassVar[Kind] = "softmax"
    mechanism: ClassVar[str]
    value_skip: ClassVar[bool] = False  # whether it adds a skip to its output and honours config.placement
    honours_backend: ClassVar[bool] = False  # whether `Preconditioner.attend` computes it, by config.backend
    parts: ClassVar[tuple[str, ...]] = ()  # paths inside it that belong to it and are not listed on their own
    definition: ClassVar[str] = ""  # what counts as a head's output, where that is a choice of ours

    def serves(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether ``cls``, which is ``registered`` or inherits from it, runs the forward that this adapter knows."""
        return cls.forward is registered.forward

    def refusal(self, module: nn.Module) -> str | None:
        """Why this very module cannot be converted, or None."""
        return None

    @abstractmethod
    def shape(self, module: nn.Module) -> HeadShape:
        """The module's number of heads and the width of a head's output."""

    @abstractmethod
    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Make ``module`` pass every head's output through ``preconditioner``, already its child."""

    @abstractmethod
    def detach(self, module: nn.Module) -> None:
        """Undo :meth:`attach`."""


class Refused(Adapter):
    """Attention that is known and cannot be converted; subclasses say why."""

    kind: ClassVar[Kind] = "other"
    mechanism = "none"
    reason: ClassVar[str]

    def refusal(self, module: nn.Module) -> str:
        """The reason."""
        return self.reason

    def shape(self, module: nn.Module) -> HeadShape:
        """Nothing is asked about it."""
        return HeadShape(None, None)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Never called: what is refused is not converted."""
        raise AssertionError("a refused module must not be converted")

    def detach(self, module: nn.Module) -> None:
        """Never called."""
        raise AssertionError("a refused module was never converted")


AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])
Finder = Callable[[type[nn.Module]], Adapter | None]

_adapters: dict[str, list[Adapter]] = {}
_finders: list[Finder] = []
_composites: set[str] = set()


def class_name(cls: type) -> str:
    """``package.module.Class``, the key of the registry."""
    return f"{cls.__module__}.{cls.__qualname__}"


def register_adapter(*classes: str) -> Callable[[AdapterClass], AdapterClass]:
    """Class decorator: let an :class:`Adapter` convert the named attention classes.

    Args:
        classes: names such as ``"timm.layers.attention.Attention"``. A name may have several adapters; the first one
            registered that serves a module's class is used.

    Raises:
        TypeError: what is decorated is not a subclass of :class:`Adapter`, or a name is not a string.

    Example:
        >>> @register_adapter("mylibrary.attention.MyAttention")
        ... class MyAdapter(Adapter): ...
    """
    if not classes or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"register_adapter takes names such as 'package.module.Class'; got {classes!r}")

    def decorate(adapter: AdapterClass) -> AdapterClass:
        if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
            raise TypeError(f"register_adapter decorates a subclass of Adapter; got {adapter!r}")
        instance = adapter()
        for name in classes:
            _adapters.setdefault(name, []).append(instance)
        return adapter

    return decorate


def register_finder(finder: Finder) -> Finder:
    """Decorator: a function from a class to its adapter or None, for libraries that share one look-up."""
    _finders.append(finder)
    return finder


def register_composite(*classes: str) -> None:
    """Say of classes that look like attention that they only hold it, or do something else; they are not listed."""
    _composites.update(classes)


def is_composite(module: nn.Module) -> bool:
    """Whether the module's very class was registered as holding attention without being one."""
    return class_name(type(module)) in _composites


def find_adapter(module: nn.Module) -> Adapter | None:
    """The adapter that converts ``module``, or None if no registered one knows its forward."""
    cls = type(module)
    _load_adapters()
    for base in cls.__mro__:
        for adapter in _adapters.get(class_name(base), ()):
            if adapter.serves(cls, base):
                return adapter
    return found_by_look_up(cls)


def found_by_look_up(cls: type[nn.Module]) -> Adapter | None:
    """The adapter that a finder has for ``cls``, whatever is registered for it by name."""
    _load_adapters()
    return next((found for finder in _finders if (found := finder(cls)) is not None), None)


def _load_adapters() -> None:
    for file, needed in _ADAPTER_FILES.items():
        if needed in sys.modules:
            importlib.import_module(f".adapters.{file}", __package__)


def registered_adapters() -> Iterator[tuple[str, Adapter]]:
    """``(class name, adapter)`` of every class registered by name, of the libraries that are imported."""
    _load_adapters()
    for name, adapters in _adapters.items():
        for adapter in adapters:
            yield name, adapter


def adapter_libraries() -> tuple[str, ...]:
    """The modules of other libraries whose attention this package knows, installed or not."""
    return tuple(dict.fromkeys(_ADAPTER_FILES.values()))
