"""Reading and writing YAML, with errors that name the file and the line."""

from __future__ import annotations

import re
from typing import Any

from ._extras import require

# YAML 1.1, which PyYAML implements, reads 1e-3 as a string because it has no decimal point.
_FLOAT_WITHOUT_POINT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
# And it reads 010 as 8 and 1:30 as 90, which hardly anybody means.
_OTHER_BASE = re.compile(r"^[-+]?(0[0-9_]+|[0-9_]+(:[0-9]+)+(\.[0-9_]*)?)$")
_MOST_DIGITS = 1000
_DEEPEST = 50  # levels
_MOST_VALUES = 100_000  # with every alias replaced by what it stands for
_OPEN = (-1, -1)  # the count of a value while it is counted


def parse_yaml(text: str, *, source: str) -> dict[str, Any]:
    """Parse ``text`` as a mapping. ``source`` names it in errors. Dates stay text.

    Raises:
        ValueError: the text is not YAML or not a mapping, a key stands twice, a number is written in another base than
            ten, or the text is nested or repeated by aliases beyond what a configuration needs.
    """
    yaml = require("yaml", extra="train")
    try:
        loader = _loader(yaml)(text)
        root = loader.get_single_node()
        if root is not None:
            _check(root, {})
        content = None if root is None else loader.construct_document(root)
    except RecursionError as error:
        raise ValueError(f"{source} is not valid YAML: it is nested more than {_DEEPEST} levels deep") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{source} must hold a mapping (key: value lines); got {type(content).__name__}")
    return content


def format_yaml(content: dict[str, Any]) -> str:
    """``content`` as YAML, keys in their order; numbers read back exactly."""
    yaml = require("yaml", extra="train")
    return yaml.dump(content, Dumper=_with_floats(yaml.SafeDumper), sort_keys=False)


def _with_floats(base: type) -> Any:
    """A loader that also reads 1e-3 as a number, or a dumper that quotes strings of that form."""
    extended = type(base.__name__, (base,), {})
    extended.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT_WITHOUT_POINT, list("-+0123456789"))  # type: ignore[attr-defined]
    return extended


def _loader(yaml: Any) -> Any:
    """A safe loader that rejects ambiguous numbers and reads dates as text."""

    def number(loader: Any, node: Any) -> Any:
        if _OTHER_BASE.match(node.value):
            raise _error(node, f"{node.value} could be meant in base 8, 10 or 60; write it in base 10, or quote it")
        if len(node.value) > _MOST_DIGITS:
            raise _error(node, f"a number has {len(node.value)} digits; at most {_MOST_DIGITS} are read")
        return getattr(loader, f"construct_yaml_{node.tag.rpartition(':')[2]}")(node)

    extended = _with_floats(yaml.SafeLoader)
    for kind in ("int", "float"):
        extended.add_constructor(f"tag:yaml.org,2002:{kind}", number)
    extended.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: loader.construct_scalar(node))
    return extended


def _check(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node stands for, and how many levels; ``known`` holds those that were counted already.

    Raises:
        yaml.YAMLError: it is too much, a key stands twice, or a value holds itself.
    """
    if isinstance(node.value, str):
        return 1, 0
    if id(node) in known:
        if known[id(node)] == _OPEN:
            raise _error(node, "a value holds itself, by an alias (*)")
        return known[id(node)]
    known[id(node)] = _OPEN
    children = node.value if node.id == "sequence" else [child for pair in _pairs(node) for child in pair]
    counted = [_check(child, known) for child in children]
    size, depth = 1 + sum(size for size, _ in counted), 1 + max((depth for _, depth in counted), default=0)
    if size > _MOST_VALUES or depth > _DEEPEST:
        raise _error(node, f"it holds more than {_MOST_VALUES} values, or more than {_DEEPEST} levels")
    known[id(node)] = size, depth
    return size, depth


def _pairs(node: Any) -> list[tuple[Any, Any]]:
    """The keys and values of a mapping, in which no key stands twice."""
    seen: dict[tuple[str, str], Any] = {}
    for key, _ in node.value:
        if isinstance(key.value, str) and (first := seen.setdefault((key.tag, key.value), key)) is not key:
            raise _error(key, f"the key {key.value!r} stands there a second time, after line {_line(first)}")
    pairs: list[tuple[Any, Any]] = node.value
    return pairs


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _error(node: Any, problem: str) -> Exception:
    """The error of PyYAML for a problem with a node."""
    error: Exception = require("yaml", extra="train").MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return error


def _reason(error: Any) -> str:
    """What is wrong, with line and column; on one line."""
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context", None)
    if mark is None:
        return " ".join(str(error).replace(' in "<unicode string>"', "").split())
    words = f"{error.problem}, {context}" if context else str(error.problem)
    return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(words.split())}"
