"""Rows as CSV, with hardware, versions and date."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence

from ..._environment import describe_environment
from .attention import Row


def rows_to_csv(rows: Sequence[Row], *, allocator: str) -> str:
    """CSV text with one line per row, which repeats the environment; None is an empty cell.

    ``allocator`` is the result of `keep_memory`.
    """
    environment = {**_environment(), "allocator": allocator}
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(Row)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *environment])
    for row in rows:
        writer.writerow([*(_cell(getattr(row, name)) for name in names), *environment.values()])
    return text.getvalue()


def _environment() -> dict[str, object]:
    described = describe_environment()
    packages = described.pop("packages")
    assert isinstance(packages, dict), "describe_environment lists the packages by name"
    return {**described, "torch": packages["torch"], "package": packages["preconditioned-attention"]}


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value
