"""The check that runs in different folders can be compared; it names both folders and what differs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..training.folder import flatten
from .fairness import StartedRun, check_starts
from .found_runs import FoundRun
from .machines import PACKAGE
from .plan import Plan
from .plan_file import differences

Plans = Mapping[Path, tuple[Plan, str]]


def check_plans(plans: Plans) -> None:
    """Raise ``ValueError`` unless the plans, by the paths of their files, are of one comparison."""
    paths = sorted(plans)
    for path in paths[1:]:
        words = differences(plans[paths[0]][0], plans[path][0])
        if words:
            raise ValueError(f"{paths[0]} and {path} are different comparisons: {'; '.join(words)}")


def check_comparable(runs: Sequence[FoundRun], plans: Plans) -> None:
    """Check that runs and plans have the same metric, settings, options of an arm, version, and starts per seed.

    Raises:
        ValueError: they do not.
        FairnessError: runs of one seed had different initial weights or random states.
    """
    of_arm: dict[str, FoundRun] = {}
    for run in runs:
        _check_pair(runs[0], run)
        other = of_arm.setdefault(run.key.arm, run)
        for name in ("config", "variant"):
            mine, others = run.description.get(name), other.description.get(name)
            if mine != others:
                _refuse(other, run, _words(f"{name} of arm {run.key.arm}", others, mine))
    for path, (plan, _) in sorted(plans.items()):
        for run in [*runs[:1], *of_arm.values()]:
            _check_against_plan(path, plan, run)
    _check_versions(runs)
    check_starts(_starts(runs))


def _check_against_plan(path: Path, plan: Plan, run: FoundRun) -> None:
    key = run.key
    if plan.higher_is_better != run.comparison["higher_is_better"]:
        words = _words("higher_is_better", plan.higher_is_better, run.comparison["higher_is_better"])
        raise ValueError(f"{path} and {run.folder} cannot be compared: {words}")
    described = plan.describe(key) if key.arm in plan.arms else {**run.description, **_of_all(plan)}
    names = [name for name in {**described, **run.description} if described.get(name) != run.description.get(name)]
    for name in names:
        mine, others = run.description.get(name), described.get(name)
        if name == "settings":
            _refuse_settings(path, run.folder, plan.plain_settings, run.description["settings"])
        raise ValueError(f"{path} and {run.folder} cannot be compared: {_words(name, others, mine)}")


def _of_all(plan: Plan) -> dict[str, Any]:
    return {"metric": plan.metric, "settings": plan.plain_settings}


def _check_pair(one: FoundRun, other: FoundRun) -> None:
    for name in ("metric", "higher_is_better"):
        if one.comparison[name] != other.comparison[name]:
            _refuse(one, other, _words(name, one.comparison[name], other.comparison[name]))
    if one.description["metric"] != other.description["metric"]:
        _refuse(one, other, _words("metric", one.description["metric"], other.description["metric"]))
    _refuse_settings(one.folder, other.folder, one.description["settings"], other.description["settings"])
    for name, value in one.comparison["baselines"].items():
        others = other.comparison["baselines"].get(name, value)
        if not math.isclose(value, others, rel_tol=1e-9):
            _refuse(one, other, _words(f"baseline {name}", value, others))


def _check_versions(runs: Sequence[FoundRun]) -> None:
    known = [(run, version) for run in runs if (version := _version(run)) is not None]
    for run, version in known[1:]:
        if version != known[0][1]:
            _refuse(known[0][0], run, _words(f"version of {PACKAGE}", known[0][1], version))


def _version(run: FoundRun) -> str | None:
    return None if run.record is None else run.record.environment.get("packages", {}).get(PACKAGE)


def _starts(runs: Sequence[FoundRun]) -> Iterator[StartedRun]:
    for run in runs:
        if run.record is not None and run.record.finished:
            yield StartedRun(run.folder, run.record, json.dumps(run.description.get("variant"), sort_keys=True))


def _refuse_settings(one: Path, other: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    before, now = flatten(first), flatten(second)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        words = "; ".join(_words(f"setting {name}", before.get(name), now.get(name)) for name in names)
        raise ValueError(f"{one} and {other} cannot be compared: {words}")


def _refuse(one: FoundRun, other: FoundRun, words: str) -> None:
    raise ValueError(f"{one.folder} and {other.folder} cannot be compared: {words}")


def _words(name: str, first: object, second: object) -> str:
    return f"{name} is {first!r} in the first and {second!r} in the second"
