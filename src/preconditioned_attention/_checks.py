"""Checks of single values, for the dataclasses of runs, tasks and recipes that users write."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def check_integer(name: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """Return ``value`` if it is an integer within the limits, both included; raise naming ``name`` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer of at least {minimum}; got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}; got {_shortened(value)}")
    return value


def _shortened(value: int) -> str:
    """``value``, or the number of its digits if they are many: str() of thousands of them raises."""
    bits = value.bit_length()
    return str(value) if bits < 100 else f"a number of {bits} bits"


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    minimum: float = 0.0,
    below: float | None = None,
    maximum: float | None = None,
) -> float:
    """Return ``value`` as a float if it is finite and within the limits; ``above``, if given, replaces ``minimum``."""
    limits = [f"at least {minimum:g}" if above is None else f"more than {above:g}"]
    limits += [] if below is None else [f"less than {below:g}"]
    limits += [] if maximum is None else [f"at most {maximum:g}"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number {' and '.join(limits)}; got {value!r}")
    try:
        number = float(value)
    except OverflowError as error:  # an integer that no float is near
        raise ValueError(f"{name} must be {' and '.join(limits)}; got an integer beyond every float") from error
    low = number < minimum if above is None else number <= above
    high = (below is not None and number >= below) or (maximum is not None and number > maximum)
    if not math.isfinite(number) or low or high:
        raise ValueError(f"{name} must be {' and '.join(limits)}; got {value!r}")
    return number


def check_path(name: str, value: object, what: str) -> None:
    """Raise ``TypeError`` or ``ValueError`` naming ``name`` if ``value`` is neither None nor a path that is not empty.

    Args:
        name: the option.
        value: its value.
        what: what it names, such as ``"a folder"``.
    """
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be the path of {what}, or None; got {value!r} (quote a path that is a number)")
    if not value.strip() or "\0" in value:
        raise ValueError(f"{name} must be the path of {what}, or None; got {value!r}")


@contextmanager
def naming_source(source: str) -> Iterator[None]:
    """Errors of values inside begin with ``source``, the file that the values are from.

    Raises:
        TypeError, ValueError: the one raised inside.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        if source in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{source}: {error}") from error


def check_known(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ValueError`` if a name in ``given`` is not ``known``; the message gives the nearest one and all."""
    names = list(known)
    unknown = [name for name in given if name not in names]
    if not unknown:
        return
    near = difflib.get_close_matches(str(unknown[0]), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown {kind} {', '.join(map(repr, unknown))}{hint}; known: {', '.join(names) or 'none'}")
