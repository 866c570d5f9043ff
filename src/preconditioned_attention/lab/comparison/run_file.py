"""``run.json``, the record of a run in its folder: written atomically, and read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..._files import write_atomically
from ..training.arms import FORMER_NAMES, Arm
from ..training.former_options import update_options
from .folder import RUN
from .plan import Plan
from .plan_file import plan_to_dict
from .read_json import FORMAT, check_entry, read_object
from .records import RunRecord, to_json

WHAT = "the record of a run"
ALONE = {"title": str, "metric": str, "higher_is_better": bool, "baselines": dict}
"""The entries of the comparison that a run's file repeats, so that its folder can be read alone."""


def write_run(folder: Path, record: RunRecord, plan: Plan, title: str) -> None:
    """Write ``record`` into the run's folder.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    comparison = {name: value for name, value in plan_to_dict(plan, title).items() if name in ALONE}
    content = {**record.to_dict(), "format": FORMAT, "comparison": comparison}
    write_atomically(folder / RUN, to_json(content))


def read_run(path: Path, *, plan: Plan | None = None) -> tuple[RunRecord, dict[str, Any] | None]:
    """The record in a ``run.json``, and what it repeats of the comparison.

    Args:
        path: the file, or a file of the same content that an earlier version wrote.
        plan: the comparison, to bring a description up to date that an earlier version wrote.

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
        if plan is not None:
            entries["description"] = _update_description(check_entry(entries, "description", dict), plan)
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


def _update_description(description: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The description of a run that an earlier version wrote, with today's names and options.

    Arms and settings that ``plan`` has as they are stay as they are.
    """
    arm, settings = check_entry(description, "arm", str), check_entry(description, "settings", dict)
    config = check_entry(description, "config", (dict, type(None)))
    return {
        **description,
        "arm": arm if arm in plan.arms else FORMER_NAMES.get(arm, arm),
        "config": None if config is None else Arm.from_dict(config).to_dict(),
        "settings": settings if settings == plan.plain_settings else update_options(settings),
    }
