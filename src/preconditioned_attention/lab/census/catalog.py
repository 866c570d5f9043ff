"""The attention classes of the installed libraries, each with its adapter."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

from torch import nn

from ...conversion.adapter import Adapter, UnsupportedAdapter
from ...conversion.class_names import class_name
from ...conversion.detection.static import computes_attention, named_after_attention
from ...conversion.registry import find_adapter, find_by_lookup, is_composite, unreviewed_reason

# Library -> the packages that hold its models, and what the names of their files begin with.
_PACKAGES = {
    "diffusers": (("diffusers.models",), ""),
    "open_clip": (("open_clip",), ""),
    "timm": (("timm.layers", "timm.models"), ""),
    "torchvision": (("torchvision.models",), ""),
    "transformers": (("transformers.models",), "modeling_"),
    "x_transformers": (("x_transformers",), ""),
}


@dataclass(frozen=True)
class CatalogEntry:
    """One attention class.

    Args:
        name: its qualified name.
        adapter: None if it has none.
        unsupported_reason: why no module of this class can be converted, or None.
        looks_up: whether it looks its attention function up in the table of its library.
    """

    name: str
    adapter: Adapter | None
    unsupported_reason: str | None
    looks_up: bool


def installed_libraries() -> dict[str, bool]:
    """Every library whose classes can be listed, and whether it is installed."""
    return {library: find_spec(library) is not None for library in _PACKAGES}


def model_files(library: str) -> tuple[str, ...]:
    """The modules of ``library`` that may define attention, by name; imports its packages, not those modules."""
    packages, prefix = _PACKAGES[library]
    names = []
    for package in map(importlib.import_module, packages):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        names += [package.__name__, *(info.name for info in found)]
    return tuple(sorted(name for name in names if name.rpartition(".")[2].startswith(prefix)))


def attention_classes(file: str) -> Iterator[CatalogEntry]:
    """The attention classes that the module ``file`` defines; imports it.

    Raises:
        ImportError: the module needs a package that is not there.
    """
    for cls in module_classes(importlib.import_module(file)):
        entry = _entry(cls)
        if entry is not None:
            yield entry


def module_classes(file: ModuleType) -> list[type[nn.Module]]:
    """The module classes that ``file`` itself defines, without abstract ones."""
    return [
        cls
        for cls in vars(file).values()
        if isinstance(cls, type)
        and issubclass(cls, nn.Module)
        and cls.__module__ == file.__name__
        and not inspect.isabstract(cls)
    ]


def _entry(cls: type[nn.Module]) -> CatalogEntry | None:
    module = _blank(cls)
    adapter, found = find_adapter(module), find_by_lookup(cls)
    if adapter is None:
        seems = unreviewed_reason(module) or computes_attention(module) or named_after_attention(cls)
        unknown = seems and not is_composite(module)
        return CatalogEntry(class_name(cls), None, None, False) if unknown else None
    # Other adapters may read attributes, which this empty module lacks.
    unsupported_reason = (
        adapter.unsupported_reason(module) if isinstance(adapter, UnsupportedAdapter) or adapter is found else None
    )
    return CatalogEntry(class_name(cls), adapter, unsupported_reason, found is not None)


def _blank(cls: type[nn.Module]) -> nn.Module:
    """An empty module of that class, for what depends on the class alone."""
    module: nn.Module = object.__new__(cls)
    nn.Module.__init__(module)
    return module
