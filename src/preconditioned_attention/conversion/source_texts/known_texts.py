"""The table `known_texts.json`: which source texts of other libraries' attention classes have been reviewed.

An adapter is written for what a class computes. A class of that name is supported only while the methods that its
forward reaches and the functions of their file have a text that was reviewed: another version may compute something
else under the same name, and so may a forward that was assigned to the class.
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

# They rotate queries and keys before attention and are replaced by kernel libraries; or they wrap a kernel that needs a
# GPU or a package of its own, and their replacements return the same.
_MAY_BE_REPLACED = ("rotary", "rope", "rotate_half", "mra2_attention", "natten")


class Library(TypedDict):
    """The reviews of one library.

    Args:
        versions: the reviewed versions.
        classes: name of a class -> digests of its texts.
        look_ups: the same, of classes that are supported by their text alone, whatever their name.
        functions: name of a function of the same file that those texts call -> digests of its texts.
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


def is_reviewed(cls: type, registered: type, entry: str = "forward") -> bool:
    """Whether the code of ``cls``, which is ``registered`` or derives from it, was reviewed.

    Where the source is not available (a frozen program), or nothing is recorded (our own layers), the code has to be
    defined in the file of its class, ``registered`` or a base of it.
    """
    library = known_texts().get(registered.__module__.partition(".")[0])
    reached = reachable_from(cls, entry)
    digest = None if library is None else methods_digest(reached)
    if library is None or digest is None:
        return _is_defined_in_place(reached, registered)
    return digest in library["classes"].get(class_name(registered), ()) and _calls_known_functions(reached, library)


def is_reviewed_lookup(reached: Reached, library: str) -> bool:
    """Whether it is a reviewed text of a class that looks its attention function up in ``library``."""
    table = known_texts()[library]
    return methods_digest(reached) in lookup_digests(library) and _calls_known_functions(reached, table)


@functools.cache
def lookup_digests(library: str) -> frozenset[str]:
    """The digests of all texts that are supported whatever the name of their class."""
    return frozenset().union(*known_texts()[library]["look_ups"].values())


def _is_defined_in_place(reached: Reached, registered: type) -> bool:
    return all(
        method.layers and method.holder in registered.__mro__ and _is_of_file(method.layers, method.holder)
        for method in reached.methods
    )


def _is_of_file(layers: tuple[FunctionType, ...], holder: type) -> bool:
    """Whether the innermost is defined in the file of its class, and the others by decorators."""
    *around, function = layers
    packages = {holder.__module__.partition(".")[0], "torch", "contextlib"}
    return function.__globals__ is _file_of(holder, function) and {package_of(layer) for layer in around} <= packages


def _file_of(holder: type, default: FunctionType) -> dict[str, object]:
    """The globals of a class's file, from its constructor; those of ``default`` if it defines none."""
    constructor = vars(holder).get("__init__")
    constructor = inspect.unwrap(constructor) if callable(constructor) else None
    return (constructor if isinstance(constructor, FunctionType) else default).__globals__


def _calls_known_functions(reached: Reached, library: Library) -> bool:
    """Whether every function of the file, and every imported one in the table, has a reviewed text."""
    known = library["functions"]
    named = {*reached.functions, *((name, function) for name, function in reached.imported if name in known)}
    return all(function_digest(function) in known.get(name, ()) for name, function in named if concerns_rows(name))


def concerns_rows(function: str) -> bool:
    """Whether a function of that name may have to do with what attention returns."""
    return not any(word in function for word in _MAY_BE_REPLACED)


def reviewed_versions(library: str) -> str:
    """Such as ``"transformers 5.0.0 to 5.24.0"``."""
    versions = known_texts()[library]["versions"]
    return f"{library} {versions[0]}" + (f" to {versions[-1]}" if len(versions) > 1 else "")
