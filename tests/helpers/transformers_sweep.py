"""Every class of transformers that computes attention, or looks like it, and what a conversion makes of it.

A class is looked at if an adapter serves it, if its forward's code computes attention or takes a softmax, or if it is
named after attention. It is then one of

* ``converted``: its heads' outputs become unit rows, exactly;
* ``defined``: the same, under a definition of what its heads' outputs are;
* ``refused``: with a reason;
* ``delegates``: it builds a class that is one of these, and computes no attention itself;
* ``no attention``: what it computes is registered as something else, or takes no product with its softmax;
* ``unknown``: it computes attention, and nothing is registered for it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Literal

import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from preconditioned_attention.conversion import ConversionReport
from preconditioned_attention.conversion.adapter import Adapter, UnsupportedAdapter
from preconditioned_attention.conversion.class_names import class_name
from preconditioned_attention.conversion.detection import static
from preconditioned_attention.conversion.model_factory import build_without_weights
from preconditioned_attention.conversion.plan import plan_conversion
from preconditioned_attention.conversion.registry import find_adapter, is_composite

Status = Literal["converted", "defined", "refused", "delegates", "no attention", "unknown"]


@dataclass(frozen=True)
class SweptClass:
    """One class: its qualified name, what becomes of it, why or under which definition, and how."""

    name: str
    status: Status
    remark: str
    mechanism: str


def transformers_classes() -> list[SweptClass]:
    """Every class that is looked at, by name."""
    return sorted((_classified(cls) for cls in _modules() if _looked_at(cls)), key=lambda found: found.name)


def model_types() -> Iterator[tuple[str, ConversionReport | None]]:
    """Every model type, and what a conversion would do to it; None if it does not build from its defaults alone."""
    for name in sorted(CONFIG_MAPPING_NAMES):
        try:
            model = build_without_weights(name)
        except Exception:  # whatever upstream raises: a missing package, no model of its own, a default that fails
            yield name, None
        else:
            yield name, plan_conversion(model)


def not_importable() -> dict[str, str]:
    """Model files that need a package which is not installed here, with their text."""
    return {name: path.read_text() for name, path in _files() if isinstance(_import(name), ImportError)}


def _files() -> Iterator[tuple[str, Path]]:
    """Name and path of every file of transformers that defines modules and is run."""
    root = Path(transformers.__file__).parent
    for path in sorted((root / "models").glob("*/*.py")):
        if not path.stem.startswith(("modular_", "convert_")) and "nn.Module" in path.read_text():
            yield ".".join(("transformers", *path.relative_to(root).with_suffix("").parts)), path


@functools.cache
def _import(name: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return error


def _modules() -> Iterator[type[nn.Module]]:
    for name, _ in _files():
        file = _import(name)
        if not isinstance(file, ImportError):
            for cls in vars(file).values():
                if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == name:
                    yield cls


@functools.cache
def _bare(cls: type[nn.Module]) -> nn.Module:
    """An instance that was never initialized: enough to ask the registry."""
    # What is abstract about a class is nothing that the registry asks for.
    concrete = type(cls.__name__, (cls,), dict.fromkeys(cls.__abstractmethods__)) if inspect.isabstract(cls) else cls
    return nn.Module.__new__(concrete)


def _adapter(cls: type[nn.Module]) -> Adapter | None:
    return find_adapter(_bare(cls))


def _names(cls: type[nn.Module]) -> set[str]:
    return {name for code in static._code_run_by_forward(cls) for name in code.co_names}


def _looked_at(cls: type[nn.Module]) -> bool:
    # cheapest first
    return (
        static._has_the_name(cls)
        or static._code_computes_attention(cls)
        or any("softmax" in name.lower() for name in _names(cls))
        or _adapter(cls) is not None
    )


def _classified(cls: type[nn.Module]) -> SweptClass:
    adapter, module = _adapter(cls), _bare(cls)
    if adapter is None:
        status, remark = _without_adapter(cls)
        return SweptClass(class_name(cls), status, remark, "")
    refusal = (
        adapter.unsupported_reason(module)
        if isinstance(adapter, UnsupportedAdapter) or adapter.mechanism == "attention interface"
        else None
    )
    if refusal is not None:
        return SweptClass(class_name(cls), "refused", refusal, "")
    return SweptClass(
        class_name(cls), "defined" if adapter.definition else "converted", adapter.definition, adapter.mechanism
    )


def _without_adapter(cls: type[nn.Module]) -> tuple[Status, str]:
    if is_composite(_bare(cls)):
        return "no attention", "registered: a softmax for something else"
    if static._code_computes_attention(cls) or static.named_after_attention(cls):
        return "unknown", ""
    held = sorted(other.__name__ for other in _built(cls) if _is_known(other))
    if held:
        return "delegates", f"builds {', '.join(held)}"
    return "no attention", "no product of a softmax with anything, and no projections to queries, keys and values"


def _is_module(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _is_known(cls: type[nn.Module]) -> bool:
    """Whether it is converted or refused, or builds what is."""
    return _adapter(cls) is not None or any(_is_known(other) for other in _built(cls))


@functools.cache
def _built(cls: type[nn.Module]) -> frozenset[type[nn.Module]]:
    """The other attention classes that its constructors name, themselves or in a table of their file."""
    named: list[object] = []
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        constructor = vars(base).get("__init__")
        if isinstance(constructor, FunctionType):
            constructor = inspect.unwrap(constructor)
            values = {**vars(nn), **constructor.__globals__}
            for code in static.nested_code(constructor.__code__):
                named += (values[name] for name in code.co_names if name in values)
    found = (value for entry in named for value in (entry.values() if isinstance(entry, dict) else [entry]))
    return frozenset(value for value in found if _is_module(value) and value is not cls)
