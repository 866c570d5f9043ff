"""Checks of single values, for the dataclasses of runs, tasks and recipes that users write."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def check_integer(name: str, value: object, *, minimum: int) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``; raise naming ``name`` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer of at least {minimum}; got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    return value


def check_number(
    name: str, value: object, *, above: float | None = None, minimum: float = 0.0, below: float | None = None
) -> float:
    """Return ``value`` as a float if it is finite and within the limits; ``above``, if given, replaces ``minimum``."""
    limits = [f"at least {minimum:g}" if above is None else f"more than {above:g}"]
    limits += [] if below is None else [f"less than {below:g}"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number {' and '.join(limits)}; got {value!r}")
    low = value < minimum if above is None else value <= above
    if not math.isfinite(value) or low or (below is not None and value >= below):
        raise ValueError(f"{name} must be {' and '.join(limits)}; got {value!r}")
    return float(value)


def check_known(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ValueError`` if a name in ``given`` is not ``known``; the message gives the nearest one and all."""
    names = list(known)
    unknown = [name for name in given if name not in names]
    if not unknown:
        return
    near = difflib.get_close_matches(str(unknown[0]), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown {kind} {', '.join(map(repr, unknown))}{hint}; known: {', '.join(names) or 'none'}")
