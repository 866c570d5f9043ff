"""The registry of adapters, by class or by the name of a class."""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeGuard, TypeVar

from torch import nn

from ..layers import Preconditioner
from .adapter import Adapter, UnsupportedAdapter
from .class_names import class_name, existing_class
from .source_texts.known_texts import is_reviewed, known_texts, reviewed_versions
from .unsupported import unsupported_classes

# Adapter file -> the module without which no model can hold a class of that library. The file is imported once
# that module is there, so that converting a timm model never imports transformers.
_ADAPTER_FILES = {
    "torch.swaps": "torch",
    "layers.tables": "preconditioned_attention.layers",
    "timm.swaps_attention": "timm.layers",
    "timm.swaps_davit": "timm.models",
    "timm.swaps_efficientformer_v2": "timm.models",
    "timm.swaps_mvitv2": "timm.models",
    "timm.swaps_iformer": "timm.models.iformer",
    "timm.hooks": "timm.models",
    "torchvision.swaps_swin": "torchvision.models",
    "torchvision.swaps_mvit": "torchvision.models",
    "torchvision.tables": "torchvision.models",
    "transformers.attention_interface": "transformers.modeling_utils",
    "transformers.hooks": "transformers.modeling_utils",
    "transformers.swaps_esmfold": "transformers.models.esm.modeling_esmfold",
    "transformers.swaps_esmfold2": "transformers.models.esmfold2.modeling_esmfold2",
    "transformers.swaps_nystromformer": "transformers.models.nystromformer.modeling_nystromformer",
    "transformers.swaps_wavlm": "transformers.models.wavlm.modeling_wavlm",
    "transformers.swaps_xlnet": "transformers.models.xlnet.modeling_xlnet",
    "diffusers.hooks": "diffusers.models",
    "x_transformers.tables": "x_transformers",
    "open_clip.swaps": "open_clip",
    "open_clip.tables": "open_clip",
    "flash_attn.tables": "flash_attn",
}
# The same for a library that holds no attention and saves what was trained.
_COMPANIONS = {"peft.save_pretrained": "peft.peft_model"}
_COMPANION_FILES = {needed: f"{__package__}.adapters.{file}" for file, needed in _COMPANIONS.items()}


AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])
Finder = Callable[[type[nn.Module]], Adapter | None]
Likeness = Callable[[type[nn.Module]], str | None]

_adapters: dict[str, list[Adapter]] = {}  # by name; the ones that users registered first
_adapters_of_classes: weakref.WeakKeyDictionary[type[nn.Module], list[Adapter]] = weakref.WeakKeyDictionary()
_finders: list[Finder] = []
_likenesses: list[Likeness] = []
_composites: set[str] = set()
_composite_classes: weakref.WeakSet[type[nn.Module]] = weakref.WeakSet()


def register_adapter(*classes: type[nn.Module] | str) -> Callable[[AdapterClass], AdapterClass]:
    """Class decorator that registers an :class:`Adapter` for the given attention classes.

    A class is registered by identity: another class of the same name, as a notebook cell creates when it is run again,
    is not included. A name is looked up at once, which imports its module, and includes every class of that name.

    A class may have several adapters. The one registered last is tried first, before those of this package; an adapter
    of the same name, as when a cell is run again, replaces the earlier one. See :func:`unregister_adapter`.

    Args:
        classes: attention classes, or names such as ``"timm.layers.attention.Attention"``.

    Raises:
        TypeError: what is decorated is not a subclass of :class:`Adapter`, or what is given is neither a class of
            modules nor a name.
        ValueError: a name matches nothing.

    Example:
        >>> import torch
        >>> from preconditioned_attention.conversion import HeadShape, PreHook, register_adapter
        >>> class MyAttention(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.qkv, self.proj = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
        ...
        ...     def forward(self, x):
        ...         q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        ...         heads = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        ...         return self.proj(heads.transpose(1, 2).flatten(2))
        >>> @register_adapter(MyAttention)
        ... class MyAdapter(PreHook):
        ...     hook_target = "proj"
        ...
        ...     def shape(self, module):
        ...         return HeadShape(num_heads=4, head_dim=4)
        >>> import preconditioned_attention as pa
        >>> pa.precondition_(MyAttention()).converted[0].mechanism
        'pre-hook'
    """
    keys = [_key(target) for target in classes]
    if not keys:
        raise TypeError("attention classes, or names such as 'package.module.Class', are registered; got none")

    def decorate(adapter: AdapterClass) -> AdapterClass:
        instance = _instance(adapter)
        for key in keys:
            registered = _adapters_under(key)
            registered[:] = [other for other in registered if class_name(type(other)) != class_name(adapter)]
            registered.insert(0, instance)
        return adapter

    return decorate


def unregister_adapter(*classes: type[nn.Module] | str) -> None:
    """Remove what was registered for ``classes`` by :func:`register_adapter` or one of the hook functions.

    Adapters of this package stay registered. A converted model is still restored by the adapter that converted it.

    Raises:
        ValueError: nothing was registered for one of ``classes``.
    """
    for target in classes:
        registered = _adapters_under(_key(target))
        others = [adapter for adapter in registered if _is_ours(adapter)]
        if len(others) == len(registered):
            raise ValueError(f"no adapter was registered for {target!r} by register_adapter")
        registered[:] = others


def register_named(*names: str) -> Callable[[AdapterClass], AdapterClass]:
    """:func:`register_adapter` for the tables of this package, whose names some versions of a library do not have.

    The first one registered is tried first.
    """

    def decorate(adapter: AdapterClass) -> AdapterClass:
        add_adapter(_instance(adapter), *names)
        return adapter

    return decorate


def add_adapter(adapter: Adapter, *names: str) -> None:
    """Let ``adapter``, one of this package, convert the classes of these names."""
    for name in names:
        _adapters.setdefault(name, []).append(adapter)


def _key(target: object) -> type[nn.Module] | str:
    """What ``target`` is registered under."""
    if isinstance(target, str):
        return class_name(existing_class(target))
    if isinstance(target, nn.Module):
        raise TypeError(f"classes are registered, not modules; pass {type(target).__name__} itself")
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        hint = "; write @register_adapter(MyAttention) above it" if _is_adapter(target) else ""
        raise TypeError(
            f"attention classes, or names such as 'package.module.Class', are registered; got {target!r}{hint}"
        )
    return target


def _adapters_under(key: type[nn.Module] | str) -> list[Adapter]:
    return _adapters.setdefault(key, []) if isinstance(key, str) else _adapters_of_classes.setdefault(key, [])


# A member under its former name would not be called, and the adapter would do something else without a word.
_FORMER_MEMBERS = {
    "honours_backend": "honors_backend",
    "point": "hook_target",
    "points": "hook_targets",
    "refusal": "unsupported_reason",
    "serves": "supports",
}


def _instance(adapter: object) -> Adapter:
    if not _is_adapter(adapter):
        raise TypeError(f"register_adapter decorates a subclass of Adapter; got {adapter!r}")
    for former, name in _FORMER_MEMBERS.items():
        if hasattr(adapter, former):
            raise TypeError(f"{adapter.__name__}.{former}: this member of an adapter is now called {name}")
    return adapter()


def _is_adapter(value: object) -> TypeGuard[type[Adapter]]:
    return isinstance(value, type) and issubclass(value, Adapter)


def _is_ours(adapter: Adapter) -> bool:
    return type(adapter).__module__.startswith(f"{__package__}.adapters.")


def register_finder(finder: Finder) -> Finder:
    """Decorator that registers a function from a class to its adapter or None."""
    _finders.append(finder)
    return finder


def register_likeness(likeness: Likeness) -> Likeness:
    """Decorator that registers a function from a class to the reason why it is not supported although it looks so."""
    _likenesses.append(likeness)
    return likeness


def register_composite(*classes: type[nn.Module] | str) -> None:
    """Say of classes that look like attention that they only hold it, or do something else; they are not listed.

    Args:
        classes: each a class or its qualified name, as in :func:`register_adapter`. Subclasses are not meant.

    Raises:
        TypeError: one is neither a class of modules nor a name.
        ValueError: a name matches nothing.
    """
    for key in [_key(target) for target in classes]:
        if isinstance(key, str):
            _composites.add(key)
        else:
            _composite_classes.add(key)


def composites_named(*names: str) -> None:
    """:func:`register_composite` for the tables of this package, whose names some versions of a library do not have."""
    _composites.update(names)


def is_composite(module: nn.Module) -> bool:
    """Whether the module's very class was registered as holding attention without being one."""
    return type(module) in _composite_classes or class_name(type(module)) in _composites


def has_namesake(module: nn.Module) -> bool:
    """Whether an adapter is registered for another class of the same name, as when a notebook's cell ran again."""
    name = class_name(type(module))
    return any(class_name(cls) == name and adapters for cls, adapters in _adapters_of_classes.items())


def find_adapter(module: nn.Module) -> Adapter | None:
    """The adapter that converts ``module``, or None if no registered one knows its forward."""
    cls = type(module)
    load_adapters()
    for base in cls.__mro__:
        for adapter in _adapters_for(base):
            if adapter.supports(cls, base) and _knows(adapter, module, base):
                return adapter
    return find_by_lookup(cls)


def _adapters_for(cls: type[nn.Module]) -> Iterator[Adapter]:
    """What is registered for this very class, the one to be tried first at the front."""
    name = class_name(cls)
    yield from _adapters_of_classes.get(cls, ())
    yield from _adapters.get(name, ())
    if name in unsupported_classes():
        yield UnsupportedAdapter(unsupported_classes()[name])


def _knows(adapter: Adapter, module: nn.Module, registered: type[nn.Module]) -> bool:
    """Whether the source text of the module's class is one that an adapter of this package was written for.

    Adapters of users are not checked, nor those that refuse, nor modules that are converted already, which have to be
    restored even if their class was changed since.
    """
    converted = isinstance(getattr(module, "preconditioner", None), Preconditioner)
    if not _is_ours(adapter) or isinstance(adapter, UnsupportedAdapter) or converted:
        return True
    parts = _parts(adapter, module)
    return is_reviewed(type(module), registered) and all(_is_reviewed_part(part, registered) for part in parts)


def _parts(adapter: Adapter, module: nn.Module) -> Iterator[nn.Module]:
    """The submodules of ``module`` that are part of its attention, as far as they exist."""
    for path in adapter.parts:
        with suppress(AttributeError):
            yield module.get_submodule(path)


def _is_reviewed_part(part: nn.Module, registered: type[nn.Module]) -> bool:
    return _library(type(part)) == _library(registered) and is_reviewed(type(part), type(part))


def _library(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def unreviewed_reason(module: nn.Module) -> str | None:
    """Why no adapter of this package supports a module that has the name or the look of one it supports, or None."""
    cls = type(module)
    load_adapters()
    for base in cls.__mro__:
        if any(not isinstance(adapter, UnsupportedAdapter) for adapter in _adapters.get(class_name(base), ())):
            return _of_another_text(cls, base)
    return next((why for likeness in _likenesses if (why := likeness(cls)) is not None), None)


def _of_another_text(cls: type[nn.Module], registered: type[nn.Module]) -> str:
    library = _library(registered)
    read = f", as read in {reviewed_versions(library)}," if library in known_texts() else ""
    return (
        f"the code that {class_name(cls)} or a part of it runs is not that of {class_name(registered)}{read} which its "
        "adapter knows; register an adapter for it with register_adapter"
    )


def find_by_lookup(cls: type[nn.Module]) -> Adapter | None:
    """The adapter that a registered finder returns for ``cls``."""
    load_adapters()
    return next((found for finder in _finders if (found := finder(cls)) is not None), None)


def load_adapters() -> None:
    """Import the adapters of the libraries that are imported."""
    for file, needed in (_ADAPTER_FILES | _COMPANIONS).items():
        if needed in sys.modules:
            importlib.import_module(f".adapters.{file}", __package__)


def load_companions() -> None:
    """Import the companions of libraries that were imported since; it is fast enough to run in every forward pass."""
    for needed, file in _COMPANION_FILES.items():
        if needed in sys.modules and file not in sys.modules:
            importlib.import_module(file)


def registered_adapters() -> Iterator[tuple[str, Adapter]]:
    """``(class name, adapter)`` of every class registered by name, of the libraries that are imported."""
    load_adapters()
    for name, adapters in _adapters.items():
        for adapter in adapters:
            yield name, adapter
    for name, entry in unsupported_classes().items():
        if name.partition(".")[0] in sys.modules:
            yield name, UnsupportedAdapter(entry)


def adapter_libraries() -> tuple[str, ...]:
    """The modules of other libraries whose attention this package knows, installed or not."""
    return tuple(dict.fromkeys(_ADAPTER_FILES.values()))
