"""The results of each arm: the chosen learning rate, paired differences, steps, time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..training.arms import Arm
from .machines import machine_of
from .metrics import RunMetrics
from .plan import REFERENCE, Plan, RunKey
from .records import RunRecord
from .statistics import Interval, paired_difference, paired_ratio, smooth, smoothing_window, steps_to_reach


@dataclass(frozen=True)
class RateSummary:
    """One learning rate of one arm: the validation metric of the seeds that finished, and the other seeds."""

    learning_rate: float
    validation: tuple[float, ...]
    failed_seeds: tuple[int, ...]
    missing_seeds: tuple[int, ...] = ()
    """Those whose run has not ended yet."""

    @property
    def mean(self) -> float | None:
        """The mean over seeds; None if a seed failed or is missing.

        A mean over the others would favor rates that diverge.
        """
        if self.failed_seeds or self.missing_seeds:
            return None
        return math.fsum(self.validation) / len(self.validation)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without the missing seeds where there are none."""
        values = {**dataclasses.asdict(self), "mean": self.mean}
        return {name: value for name, value in values.items() if name != "missing_seeds" or value}


@dataclass(frozen=True)
class Failure:
    """A failed run and the reason."""

    key: RunKey
    reason: str


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """The results of one arm. Everything after ``failures`` is None or empty if no learning rate could be chosen.

    Args:
        name: the arm.
        arm: None for the reference.
        rates: every learning rate, ascending.
        failures: the runs that failed, at any learning rate.
        missing: the runs that have not ended yet, at any learning rate.
        learning_rate: the rate with the best mean validation metric (in a tie the smaller).
        bracketed: whether rates that finished lie on both sides of it.
        validation: per seed, at that rate.
        test: per seed, at that rate.
        difference: test metric minus the reference's, paired by seed; None for the reference.
        steps: per seed, steps to the reference's final training loss (None: not reached); None if not measured.
        total_steps: per seed, the number of steps.
        time_ratio: time per step relative to the reference, paired by seed and learning rate; None if not measured.
        seconds_per_step: the mean over seeds at the chosen rate; None if not measured.
    """

    name: str
    arm: Arm | None
    rates: tuple[RateSummary, ...]
    failures: tuple[Failure, ...]
    missing: tuple[RunKey, ...] = ()
    learning_rate: float | None = None
    bracketed: bool | None = None
    validation: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    difference: Interval | None = None
    steps: tuple[int | None, ...] | None = None
    total_steps: tuple[int, ...] = ()
    time_ratio: Interval | None = None
    seconds_per_step: float | None = None


def summarize(plan: Plan, records: Mapping[RunKey, RunRecord]) -> dict[str, ArmSummary]:
    """The results of each arm of ``plan``, in the plan's order. ``records`` holds the runs that have ended."""
    chosen = {name: chosen_runs(plan, records, name) for name in plan.arms}
    return {name: _summarize_arm(plan, records, name, chosen[name], chosen[REFERENCE]) for name in plan.arms}


def rate_summaries(plan: Plan, records: Mapping[RunKey, RunRecord], arm: str) -> tuple[RateSummary, ...]:
    """The validation metric of ``arm`` at every learning rate."""
    summaries = []
    for rate in plan.learning_rates:
        runs = {seed: records.get(RunKey(seed, rate, arm)) for seed in plan.seeds}
        ended = {seed: run for seed, run in runs.items() if run is not None}
        metrics = tuple(run.metrics.validation for run in ended.values() if run.finished and run.metrics is not None)
        failed = tuple(seed for seed, run in ended.items() if not run.finished)
        summaries.append(RateSummary(rate, metrics, failed, tuple(seed for seed in runs if seed not in ended)))
    return tuple(summaries)


def choose_rate(rates: Sequence[RateSummary], *, higher_is_better: bool) -> RateSummary | None:
    """The rate with the best mean validation metric, in a tie the smaller; None if no rate has all its seeds."""
    sign = -1 if higher_is_better else 1
    usable = [(sign * rate.mean, rate.learning_rate, rate) for rate in rates if rate.mean is not None]
    return min(usable)[2] if usable else None


def chosen_runs(plan: Plan, records: Mapping[RunKey, RunRecord], arm: str) -> tuple[RunMetrics, ...]:
    """The metrics of the runs of ``arm`` at its chosen rate, in the order of the seeds; empty if none can be chosen."""
    rate = choose_rate(rate_summaries(plan, records, arm), higher_is_better=plan.higher_is_better)
    if rate is None:
        return ()
    runs = [records[RunKey(seed, rate.learning_rate, arm)] for seed in plan.seeds]
    return tuple(run.metrics for run in runs if run.metrics is not None)


def _summarize_arm(
    plan: Plan,
    records: Mapping[RunKey, RunRecord],
    name: str,
    runs: Sequence[RunMetrics],
    reference: Sequence[RunMetrics],
) -> ArmSummary:
    rates = rate_summaries(plan, records, name)
    keys = [key for key in plan.run_keys() if key.arm == name]
    missing = tuple(key for key in keys if key not in records)
    mine = [records[key] for key in keys if key in records]
    failures = tuple(Failure(record.key, record.reason or "") for record in mine if not record.finished)
    chosen = choose_rate(rates, higher_is_better=plan.higher_is_better)
    if chosen is None:
        return ArmSummary(name=name, arm=plan.arms[name], rates=rates, failures=failures, missing=missing)
    usable = [rate.learning_rate for rate in rates if rate.mean is not None]
    test = tuple(run.test for run in runs)
    comparable = bool(reference) and name != REFERENCE
    times = [run.seconds_per_step for run in runs if run.seconds_per_step is not None]
    return ArmSummary(
        name=name,
        arm=plan.arms[name],
        rates=rates,
        failures=failures,
        missing=missing,
        learning_rate=chosen.learning_rate,
        bracketed=min(usable) < chosen.learning_rate < max(usable),
        validation=chosen.validation,
        test=test,
        difference=paired_difference(test, [run.test for run in reference]) if comparable else None,
        steps=_steps_to_reference(runs, reference),
        total_steps=tuple(len(run.losses) for run in runs),
        time_ratio=_time_ratio(plan, records, name) if name != REFERENCE else None,
        seconds_per_step=math.fsum(times) / len(times) if len(times) == len(runs) else None,
    )


def _steps_to_reference(runs: Sequence[RunMetrics], reference: Sequence[RunMetrics]) -> tuple[int | None, ...] | None:
    """Per seed, the first step at which the smoothed loss is at or below the reference's last smoothed loss."""
    if not reference or not all(run.losses for run in (*runs, *reference)):
        return None
    steps = []
    for run, base in zip(runs, reference, strict=True):
        window = smoothing_window(len(base.losses))
        steps.append(steps_to_reach(run.losses, smooth(base.losses, window)[-1], window))
    return tuple(steps)


def _time_ratio(plan: Plan, records: Mapping[RunKey, RunRecord], arm: str) -> Interval | None:
    """Time per step over the reference's, from every seed and rate at which one machine measured both."""
    mine, reference = [], []
    for seed in plan.seeds:
        for rate in plan.learning_rates:
            pair = [records.get(RunKey(seed, rate, name)) for name in (arm, REFERENCE)]
            times = [_seconds_per_step(record) for record in pair]
            if times[0] is not None and times[1] is not None and _same_machine(pair):
                mine.append(times[0])
                reference.append(times[1])
    return paired_ratio(mine, reference) if mine else None


def _seconds_per_step(record: RunRecord | None) -> float | None:
    if record is None or not record.finished or record.metrics is None:
        return None
    return record.metrics.seconds_per_step


def _same_machine(records: Sequence[RunRecord | None]) -> bool:
    return len({None if record is None else machine_of(record) for record in records}) == 1
