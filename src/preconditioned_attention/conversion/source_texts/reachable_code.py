"""The code that a method of a class reaches by the names in it, and digests of its source text."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn

# Decorators of these packages wrap a method without changing what it computes: grad modes, renamed arguments, caches.
_DECORATING = {"torch", "contextlib", "transformers", "diffusers", "timm", "torchvision", "open_clip", "x_transformers"}
_NOT_COMPARED = {"decorator_list", "returns", "annotation", "type_comment", "type_params", "ctx", "kind"}


class Definition(NamedTuple):
    """A method that is reached: the class that defines it, its name, and its functions.

    The last of ``layers`` is the method itself, those before it are wrappers of decorators; empty if it is not a Python
    function.
    """

    holder: type
    name: str
    layers: tuple[FunctionType, ...]


@dataclass
class Reached:
    """The code that a method reaches.

    Args:
        methods: of its class, including those that `super()` reaches.
        functions: of the same file as the code that calls them, with the names they are called by.
        imported: the same, of other files.
    """

    methods: list[Definition] = field(default_factory=list)
    functions: set[tuple[str, FunctionType]] = field(default_factory=set)
    imported: set[tuple[str, FunctionType]] = field(default_factory=set)

    def names(self) -> set[str]:
        """Every name in the code of the methods."""
        return {name for method in self.methods for layer in method.layers[-1:] for name in all_names(layer.__code__)}


def reachable_from(cls: type, entry: str = "forward") -> Reached:
    """Everything of ``cls`` and of its file that its method ``entry`` reaches, without the methods of `nn.Module`."""
    found = Reached()
    pending, seen = ["__call__", entry], set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for method in _definitions(cls, name, entry):
            found.methods.append(method)
            for layer in method.layers[-1:]:
                pending += all_names(layer.__code__)
                _collect_functions(layer, found)
    return found


def _definitions(cls: type, name: str, entry: str) -> Iterator[Definition]:
    """The definition of ``name`` that ``cls`` uses, and those that it calls by `super()`."""
    if name != entry and name != "__call__" and hasattr(nn.Module, name) and issubclass(cls, nn.Module):
        return
    for holder in cls.__mro__:
        if holder in (nn.Module, object):
            return
        if name in vars(holder) and _is_code(vars(holder)[name]):
            layers = _layers(vars(holder)[name])
            yield Definition(holder, name, layers)
            if not layers or "super" not in all_names(layers[-1].__code__):
                return


def _is_code(value: object) -> bool:
    """Whether it is a method or a property, and not a class or a value."""
    descriptors = (property, staticmethod, classmethod, functools.cached_property)
    return isinstance(value, descriptors) or (callable(value) and not isinstance(value, type))


def _layers(value: object) -> tuple[FunctionType, ...]:
    """The functions of a member of a class, outermost first; empty if one of them is not a Python function."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.cached_property):
        value = value.func
    elif isinstance(value, staticmethod | classmethod):
        value = value.__func__
    layers = []
    while value is not None:
        if isinstance(value, FunctionType):
            layers.append(value)
        elif not isinstance(value, functools._lru_cache_wrapper):
            return ()
        value = getattr(value, "__wrapped__", None)
    return tuple(layers)


def _collect_functions(caller: FunctionType, found: Reached) -> None:
    """The functions that ``caller`` names, and within its file those that they name."""
    for name in all_names(caller.__code__):
        layers = _layers(caller.__globals__.get(name))
        if not layers or (name, layers[-1]) in found.functions:
            continue
        if layers[-1].__globals__ is caller.__globals__:
            found.functions.add((name, layers[-1]))
            _collect_functions(layers[-1], found)
        else:
            found.imported.add((name, layers[-1]))


@functools.lru_cache(maxsize=4096)
def all_names(code: CodeType) -> frozenset[str]:
    """The names that ``code`` and what is nested in it mention."""
    nested = (all_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(code.co_names).union(*nested)


def methods_digest(reached: Reached) -> str | None:
    """One digest of the source of all methods; None where it is not available."""
    parts = []
    for method in reached.methods:
        if not method.layers:
            parts.append(f"{method.name} of no Python function")
            continue
        own = [layer for layer in method.layers[:-1] if package_of(layer) not in _DECORATING]
        for layer in (*own, method.layers[-1]):
            digest = function_digest(layer)
            if digest is None:
                return None
            parts.append(f"{method.name} {digest}")
    return _short_digest("\n".join(sorted(parts)))


def package_of(function: FunctionType) -> str:
    """The package whose file defines it; `functools.wraps` changes `__module__`."""
    return str(function.__globals__.get("__name__", "")).partition(".")[0]


def function_digest(function: FunctionType) -> str | None:
    """A digest of a function's source; None where it is not available.

    It does not depend on comments, docstrings, annotations and decorators, nor on the version of Python.
    """
    return _code_digest(function.__code__)


def text_digest(function: Callable[..., Any]) -> str | None:
    """A digest of a function's source as it is, with comments; None where it is not available."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _code_digest(code: CodeType) -> str | None:
    try:
        source = inspect.getsource(code)
        tree = ast.parse(f"if True:\n{source}" if source[:1].isspace() else source)
    except (OSError, SyntaxError):
        return None
    return _short_digest(_canonical(tree))


def _canonical(node: object) -> str:
    """A syntax tree as text, the same for every version of Python."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        node.body = node.body[1:]
    if isinstance(node, ast.JoinedStr):  # some versions put empty pieces into it
        node.values = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in _NOT_COMPARED)
        kept = (f"{name}={_canonical(value)}" for name, value in fields if value is not None and value != [])
        return f"{type(node).__name__}({','.join(kept)})"
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    return repr(node)


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
