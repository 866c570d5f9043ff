"""Resolving the names in a function's code to objects, by globals, closures, imports and attributes.

Nothing is run, and nothing is imported that has not been imported before.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType

import torch

_CONTAINERS = (dict, list, tuple)
_LARGEST_CONTAINER = 200  # larger ones are data, and no table of functions
_ABSENT = object()


def nested_code(code: CodeType) -> Iterator[CodeType]:
    """``code`` and every function, comprehension or lambda compiled inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_code(constant)


def named_objects(function: FunctionType) -> list[object]:
    """Every object that the code of ``function`` names, by a name or a chain of attributes, if it exists."""
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    found = [value for code in nested_code(function.__code__) for value in _loaded(code, function.__globals__, cells)]
    return [value for value in found if value is not _ABSENT]


def _loaded(code: CodeType, values: dict[str, object], cells: dict[str, object]) -> Iterator[object]:
    current: object = _ABSENT
    for instruction in dis.get_instructions(code):
        name, operation = instruction.argval, instruction.opname
        if operation in ("LOAD_GLOBAL", "LOAD_NAME"):
            current = values.get(name, getattr(builtins, name, _ABSENT))
        elif operation in ("LOAD_DEREF", "LOAD_CLOSURE", "LOAD_CLASSDEREF"):
            current = cells.get(name, _ABSENT)
        elif operation == "IMPORT_NAME":
            package = current = _imported(name, values)
        elif operation == "IMPORT_FROM":
            current = _attribute(package, name)
        elif operation in ("LOAD_ATTR", "LOAD_METHOD"):
            current = _attribute(current, name)
        elif operation in ("PUSH_NULL", "CACHE", "EXTENDED_ARG"):
            continue
        else:
            current = _ABSENT
        yield current


def _imported(name: str, values: dict[str, object]) -> object:
    """The module that an import in a function refers to, if it is imported already; relative ones by their end."""
    if name in sys.modules:
        return sys.modules[name]
    package = str(values.get("__package__") or "")
    while package:
        found = sys.modules.get(f"{package}.{name}" if name else package)
        if found is not None:
            return found
        package = package.rpartition(".")[0]
    return _ABSENT


def _attribute(owner: object, name: str) -> object:
    """An attribute of a module, a class or a namespace of operators, where reading it runs no code."""
    if isinstance(owner, ModuleType):
        return vars(owner).get(name, _ABSENT) if not _of_operators(owner) else getattr(owner, name, _ABSENT)
    if isinstance(owner, type):
        return inspect.getattr_static(owner, name, _ABSENT)
    if isinstance(owner, torch._ops.OpOverloadPacket):
        return owner
    return _ABSENT


def _of_operators(module: ModuleType) -> bool:
    return isinstance(module, type(torch.ops) | torch._ops._OpNamespace)


def underlying_callables(value: object, depth: int = 3) -> Iterator[object]:
    """The functions and classes behind ``value``.

    It unwraps decorators, `functools.partial`, bound methods, `torch.compile`, custom operators, `autograd.Function`,
    and dicts, lists and tuples of those.
    """
    if isinstance(value, _CONTAINERS):
        if depth and len(value) <= _LARGEST_CONTAINER:
            for item in value.values() if isinstance(value, dict) else value:
                yield from underlying_callables(item, depth - 1)
    elif isinstance(value, functools.partial):
        yield from underlying_callables((value.func, *value.args, *value.keywords.values()), depth)
    elif isinstance(value, staticmethod | classmethod | MethodType):
        yield from underlying_callables(value.__func__, depth)
    elif isinstance(value, type) and issubclass(value, torch.autograd.Function):
        yield from underlying_callables(inspect.getattr_static(value, "forward", None), depth)
    elif isinstance(value, torch.library.CustomOpDef):
        yield from underlying_callables(value._init_fn, depth)
    elif _is_apply(value):
        yield from underlying_callables(value.__self__, depth)  # type: ignore[attr-defined]
    elif callable(value):
        yield _undecorated(value)


def _is_apply(value: object) -> bool:
    owner = getattr(value, "__self__", None) if callable(value) and not isinstance(value, ModuleType) else None
    return isinstance(owner, type) and issubclass(owner, torch.autograd.Function)


def _undecorated(value: object) -> object:
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return value
    original = vars(value).get("_torchdynamo_orig_callable")
    if original is not None and original is not value:
        return _undecorated(original)
    return inspect.unwrap(value) if "__wrapped__" in vars(value) else value  # type: ignore[arg-type]
