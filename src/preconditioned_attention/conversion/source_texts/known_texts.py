"""Which texts of other libraries' attention classes somebody has read: the table `known_texts.json`.

An adapter was written against what a class computes. A class of that name counts as known only while its code, the
methods that its forward reaches and the functions of their file, is a text that was read: a newer version may compute
something else under the old name, and so may whoever assigns a forward of his own to the class.
"""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from types import FunctionType
from typing import TypedDict

from ..class_names import class_name
from .reachable_code import Reached, function_digest, methods_digest, package_of, reachable_from

TABLE = Path(__file__).with_name("known_texts.json")

# They turn queries and keys before attention, never what it returns, and are what kernel libraries replace; or they
# stand for a kernel that needs a GPU or a package of its own, and whatever takes their place returns the same.
_MAY_BE_REPLACED = ("rotary", "rope", "rotate_half", "mra2_attention", "natten")


class Library(TypedDict):
    """What was read of one library.

    Args:
        versions: those that were read.
        classes: name of a class -> digests of its texts.
        look_ups: the same, of classes that are served because of their text alone.
        functions: name of a function that those texts call, of their own file -> digests of its texts.
    """

    versions: list[str]
    classes: dict[str, list[str]]
    look_ups: dict[str, list[str]]
    functions: dict[str, list[str]]


@functools.cache
def known_texts() -> dict[str, Library]:
    """The whole table, by library."""
    table: dict[str, Library] = json.loads(TABLE.read_text())
    return table


def is_read(cls: type, registered: type, entry: str = "forward") -> bool:
    """Whether what ``cls``, which is ``registered`` or inherits from it, runs is a text that was read.

    Where the source is not at hand (a frozen program), or nothing was recorded (our own layers), what it runs has to
    be defined in the file of the class that holds it, ``registered`` or a base of it.
    """
    library = known_texts().get(registered.__module__.partition(".")[0])
    reached = reachable_from(cls, entry)
    digest = None if library is None else methods_digest(reached)
    if library is None or digest is None:
        return _is_defined_in_place(reached, registered)
    return digest in library["classes"].get(class_name(registered), ()) and _calls_known_functions(reached, library)


def is_read_lookup(reached: Reached, library: str) -> bool:
    """Whether it is a text of a class of ``library`` that is served because of its text alone, whoever defines it."""
    table = known_texts()[library]
    return methods_digest(reached) in lookup_digests(library) and _calls_known_functions(reached, table)


@functools.cache
def lookup_digests(library: str) -> frozenset[str]:
    """The digests of all texts that are served whatever their class is called."""
    return frozenset().union(*known_texts()[library]["look_ups"].values())


def _is_defined_in_place(reached: Reached, registered: type) -> bool:
    return all(
        method.layers and method.holder in registered.__mro__ and _is_of_file(method.layers, method.holder)
        for method in reached.methods
    )


def _is_of_file(layers: tuple[FunctionType, ...], holder: type) -> bool:
    """Whether the innermost is defined in the file of the class that holds it, and the others by decorators."""
    *around, function = layers
    packages = {holder.__module__.partition(".")[0], "torch", "contextlib"}
    return function.__globals__ is _file_of(holder, function) and {package_of(layer) for layer in around} <= packages


def _file_of(holder: type, default: FunctionType) -> dict[str, object]:
    """The globals of a class's file, by its constructor; those of ``default`` if it has none of its own."""
    constructor = vars(holder).get("__init__")
    constructor = inspect.unwrap(constructor) if callable(constructor) else None
    return (constructor if isinstance(constructor, FunctionType) else default).__globals__


def _calls_known_functions(reached: Reached, library: Library) -> bool:
    """Whether every function that is known by its name has a known text, and no other stands in the file."""
    known = library["functions"]
    named = {*reached.functions, *((name, function) for name, function in reached.imported if name in known)}
    return all(function_digest(function) in known.get(name, ()) for name, function in named if concerns_rows(name))


def concerns_rows(function: str) -> bool:
    """Whether a function of that name may have to do with what attention returns."""
    return not any(word in function for word in _MAY_BE_REPLACED)


def versions_read(library: str) -> str:
    """Such as ``"transformers 5.0.0 to 5.24.0"``."""
    versions = known_texts()[library]["versions"]
    return f"{library} {versions[0]}" + (f" to {versions[-1]}" if len(versions) > 1 else "")
