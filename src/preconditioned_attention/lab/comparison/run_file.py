"""``run.json``, the record of a run in its folder: written atomically, and read strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..._files import write_atomically
from .folder import RUN
from .plan import Plan
from .plan_file import plan_to_dict
from .read_json import FORMAT, check_entry, read_object
from .records import RunRecord, to_json

WHAT = "the record of a run"
ALONE = {"title": str, "metric": str, "higher_is_better": bool, "baselines": dict}
"""The entries of the comparison that a run's file repeats, so that its folder can be read alone."""

Update = Callable[[dict[str, Any]], dict[str, Any]]


def write_run(folder: Path, record: RunRecord, plan: Plan, title: str) -> None:
    """Write ``record`` into the run's folder.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    comparison = {name: value for name, value in plan_to_dict(plan, title).items() if name in ALONE}
    content = {**record.to_dict(), "format": FORMAT, "comparison": comparison}
    write_atomically(folder / RUN, to_json(content))


def read_run(path: Path, *, update: Update | None = None) -> tuple[RunRecord, dict[str, Any] | None]:
    """The record in a ``run.json``, and what it repeats of the comparison.

    Args:
        path: the file, or a file of the same content that an earlier version wrote.
        update: brings the description up to date that an earlier version wrote.

    Returns:
        The record, and title, metric, higher_is_better and baselines; None in the files of earlier versions.

    Raises:
        ValueError: the file holds something else, or lies in a folder that has the name of another run.
        OSError: it cannot be read.
    """
    values = read_object(path, WHAT)
    try:
        comparison = _check_comparison(path, values)
        entries = {name: value for name, value in values.items() if name not in ("format", "comparison")}
        if update is not None:
            entries["description"] = update(check_entry(entries, "description", dict))
        record = RunRecord.from_dict(entries)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not {WHAT} ({error}); remove it, and the run is done again") from error
    return record, comparison


def _check_comparison(path: Path, values: dict[str, Any]) -> dict[str, Any] | None:
    """What the file repeats of the comparison; None in a file of an earlier version, which has another name."""
    if path.name != RUN and "format" not in values:
        return None
    check_entry(values, "format", int)
    comparison: dict[str, Any] = check_entry(values, "comparison", dict)
    for name, kind in ALONE.items():
        check_entry(comparison, name, kind)
    for name in comparison["baselines"]:
        check_entry(comparison["baselines"], name, (float, int))
    return comparison
