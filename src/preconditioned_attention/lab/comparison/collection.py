"""The runs in folders from any places and machines, put together to one comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.arms import ARMS, Arm
from .comparable import Plans, check_comparable, check_plans
from .found_runs import FoundFolders, FoundRun, describe_comparison, find_runs, order_key, read_trained
from .plan import REFERENCE, Plan, RunKey
from .records import RunRecord, to_json


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Runs that can be compared: the plan that they belong to, and the records of those that have ended."""

    plan: Plan
    title: str
    records: dict[RunKey, RunRecord]


def collect_runs(folders: Sequence[Path]) -> Collection:
    """Read the runs in ``folders`` and check that they can be compared.

    Args:
        folders: each a run's folder, a comparison's folder, or a folder of such folders.

    Raises:
        ValueError: a folder holds no run, a file is not what it should be, or two runs cannot be compared; the message
            names both folders and what differs.
        FairnessError: runs of one seed had different initial weights or random states.
        OSError: a file or folder cannot be read.
    """
    found = find_runs(folders)
    check_plans(found.plans)
    plan = _plan_so_far(found)
    runs = sorted([*found.runs, *(read_trained(path, plan) for path in sorted(found.trained))], key=order_key)
    check_comparable(runs, found.plans)
    return Collection(plan=_join(runs, found.plans), title=_title(runs, found.plans), records=_unique(runs))


def _plan_so_far(found: FoundFolders) -> Plan | None:
    """The plan of the comparisons, by which the runs of ``train`` get the names of their arms."""
    if not (found.plans or found.runs):
        return None
    runs = sorted(found.runs, key=order_key)
    check_comparable(runs, found.plans)
    return _join(runs, found.plans) if found.plans or any(run.key.arm == REFERENCE for run in runs) else None


def _unique(runs: Sequence[FoundRun]) -> dict[RunKey, RunRecord]:
    """One record for each run that has ended: a finished one before a failed one."""
    kept: dict[RunKey, FoundRun] = {}
    for run in runs:
        other = kept.get(run.key)
        if run.record is None:
            continue
        if other is None or (run.record.finished and not _finished(other)):
            kept[run.key] = run
        elif run.record.finished and _numbers(run) != _numbers(other):
            raise ValueError(
                f"{other.folder} and {run.folder} hold the same run, {run.key.stem}, with different numbers; leave out "
                "one of them"
            )
    return {key: run.record for key, run in kept.items() if run.record is not None}


def _finished(run: FoundRun) -> bool:
    return run.record is not None and run.record.finished


def _numbers(run: FoundRun) -> Any:
    """The metrics that do not depend on the machine's speed."""
    assert run.record is not None
    assert run.record.metrics is not None
    metrics = run.record.metrics.to_dict()
    names = ("validation", "test", "losses", "evaluations")
    return json.loads(to_json({name: metrics[name] for name in names}))


def _join(runs: Sequence[FoundRun], plans: Plans) -> Plan:
    """The plan of all runs and plans together."""
    known = [plan for _, (plan, _) in sorted(plans.items())]
    arms = _arms(runs, known)
    if REFERENCE not in arms:
        raise ValueError(
            f"there is no run of arm {REFERENCE!r}, with which the others are compared, in {runs[0].folder}"
            + (f" and {len(runs) - 1} other folders" if len(runs) > 1 else "")
        )
    variants = {name: options for plan in known for name, options in plan.variants.items()}
    for run in runs:
        if "variant" in run.description:
            variants[run.key.arm] = run.description["variant"]
    first = describe_comparison(known[0], "") if known else runs[0].comparison
    return Plan(
        arms=arms,
        seeds=_in_order([plan.seeds for plan in known], [run.key.seed for run in runs]),
        learning_rates=_in_order([plan.learning_rates for plan in known], [run.key.learning_rate for run in runs]),
        metric=first["metric"],
        higher_is_better=first["higher_is_better"],
        settings=known[0].settings if known else runs[0].description["settings"],
        variants=variants,
        baselines=_baselines(runs, known),
    )


def _baselines(runs: Sequence[FoundRun], plans: Sequence[Plan]) -> dict[str, float]:
    baselines: dict[str, float] = {}
    for found in (*(plan.baselines for plan in plans), *(run.comparison["baselines"] for run in runs)):
        baselines = {**found, **baselines}
    return baselines


def _arms(runs: Sequence[FoundRun], plans: Sequence[Plan]) -> dict[str, Arm | None]:
    """In the order of the plans; then the usual ones, then the others by name."""
    found: dict[str, Arm | None] = {}
    for run in runs:
        config = run.description["config"]
        found[run.key.arm] = None if config is None else Arm.from_dict(config)
    of_plans = {name: arm for plan in plans for name, arm in plan.arms.items()}
    usual = [name for name in ARMS if name in found]
    names = dict.fromkeys([*of_plans, *usual, *sorted(found)])
    return {name: of_plans[name] if name in of_plans else found[name] for name in names}


def _in_order(of_plans: Sequence[Sequence[Any]], of_runs: Iterable[Any]) -> list[Any]:
    """Every value: in the order of the plans if they agree, otherwise ascending."""
    ordered = list(dict.fromkeys(of_plans[0])) if of_plans and all(one == of_plans[0] for one in of_plans) else []
    others = {value for values in (*of_plans, of_runs) for value in values} - set(ordered)
    return [*ordered, *sorted(others)]


def _title(runs: Sequence[FoundRun], plans: Plans) -> str:
    titles = {title for _, title in plans.values()} or {run.comparison["title"] for run in runs}
    return " / ".join(sorted(titles))
