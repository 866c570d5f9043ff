"""``--slice i/n``: the part of a plan that one job of an array does."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..plan import Plan, RunKey


def parse_slice(text: str) -> tuple[int, int]:
    """``"2/3"`` as ``(2, 3)``.

    Raises:
        ValueError: it is not the number of a slice, from 1, and how many there are.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None:
        raise ValueError(f"--slice must be the slice's number and how many there are, such as 1/3; got {text!r}")
    return check_slice((int(match[1]), int(match[2])))


def check_slice(part: object) -> tuple[int, int]:
    """``part`` if it is a slice's number, from 1, and how many there are.

    Raises:
        ValueError: it is not.
    """
    whole = isinstance(part, Sequence) and len(part) == 2 and all(type(number) is int for number in part)
    if not whole or not 1 <= part[0] <= part[1]:  # type: ignore[index]
        shown = f"{part[0]}/{part[1]}" if whole else repr(part)  # type: ignore[index]
        raise ValueError(f"slice must be a number from 1 to n, and n, the number of slices, such as 1/3; got {shown}")
    return part[0], part[1]  # type: ignore[index]


def keys_of_slice(plan: Plan, part: tuple[int, int] | None) -> list[RunKey]:
    """The runs of slice ``part``, or all runs if it is None.

    A slice is a contiguous part of the plan and takes all arms of a seed and learning rate or none, so that the arms
    whose times are compared run on one machine. It is empty if there are more slices than seeds and rates.
    """
    keys, arms = list(plan.run_keys()), len(plan.arms)
    if part is None:
        return keys
    number, count = part
    groups = len(keys) // arms
    return keys[(number - 1) * groups // count * arms : number * groups // count * arms]
