"""Reading the JSON files of a comparison: one sentence that names the file if it holds something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..._files import read_text

FORMAT = 1
"""Of ``comparison.json`` and ``run.json``; a version that changes their meaning counts it up."""


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file, strictly: UTF-8, every name once, no NaN or infinity.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        ValueError: it holds something else, or was written by a newer version.
        OSError: it cannot be read, or is no file.
    """
    text = read_text(path, kind=what)
    try:
        content = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError(f"{path} is not {what} (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{path} is not {what} ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not {what} (it holds {_kind(content)} instead of an object)")
    found = content.get("format", FORMAT)
    if isinstance(found, int) and found > FORMAT:
        raise ValueError(
            f"{path} was written by a newer version of preconditioned-attention (format {found}; this version reads "
            f"format {FORMAT}); install that version"
        )
    if found != FORMAT or isinstance(found, bool):
        raise ValueError(f"{path} is not {what} (format must be {FORMAT}; got {found!r})")
    return content


def check_entry(values: dict[str, Any], name: str, kinds: type | tuple[type, ...]) -> Any:
    """``values[name]``, which must be there and of this type; True and False are no numbers.

    Raises:
        ValueError, TypeError: it is missing, or of another type; the message names it.
    """
    if name not in values:
        raise ValueError(f"{name!r} is missing")
    value = values[name]
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join("null" if kind is type(None) else _NAMES[kind] for kind in allowed)
        raise TypeError(f"{name!r} must be {names}; got {_kind(value)}")
    return value


_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def _kind(value: object) -> str:
    return _NAMES[type(value)]


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repeated!r} is there twice")
    return values
