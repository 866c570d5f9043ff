"""The tables of a comparison."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..reporting import Table, decimals_for, format_number
from .figures import MOMENT_WORDS, conditioning_by_layer
from .machines import Machine
from .metrics import RunMetrics
from .plan import REFERENCE, Plan
from .statistics import LEVEL, Interval
from .summary import ArmSummary, RateSummary
from .verdict import difference_decimals

Summaries = Mapping[str, ArmSummary]


def results_table(plan: Plan, summaries: Summaries) -> Table:
    """One row per arm: the chosen rate, the metric, the paired difference, steps, time."""
    decimals = difference_decimals(summaries)
    rows = [
        (
            name,
            _chosen_rate(summary),
            _mean(summary.validation, decimals),
            _mean(summary.test, decimals),
            format_number(summary.difference.mean, decimals, sign=True) if summary.difference else format_number(None),
            format_interval(summary.difference, decimals),
            _steps(summary),
            _time_ratio(summary),
        )
        for name, summary in summaries.items()
    ]
    columns = (
        "arm",
        "learning rate",
        f"validation {plan.metric}",
        f"test {plan.metric}",
        f"test − {REFERENCE}",
        f"{LEVEL:.0%} interval",
        f"steps to {REFERENCE}'s final loss",
        f"time per step / {REFERENCE}",
    )
    note = (
        f"Means over {len(plan.seeds)} seeds. Intervals: Student's t on the paired differences, not corrected "
        "for multiple comparisons. Steps are means if every seed reached the loss; otherwise the cell counts the seeds."
    )
    if plan.baselines:
        scores = ", ".join(f"{name} {format_number(value, 4)}" for name, value in plan.baselines.items())
        note += f" Test {plan.metric} without a model: {scores}."
    return Table(
        title="Results at the learning rate chosen on validation data", columns=columns, rows=tuple(rows), note=note
    )


def seeds_table(plan: Plan, summaries: Summaries, runs: Mapping[str, Sequence[RunMetrics]]) -> Table:
    """One row per arm and seed, at the arm's chosen rate."""
    decimals = difference_decimals(summaries)
    rows = []
    for name, summary in summaries.items():
        for index, run in enumerate(runs[name]):
            difference = None if summary.difference is None else summary.difference.values[index]
            reached = format_number(None) if summary.steps is None else str(summary.steps[index] or "not reached")
            rows.append(
                (
                    name,
                    str(plan.seeds[index]),
                    format_number(run.validation, decimals),
                    format_number(run.test, decimals),
                    format_number(difference, decimals, sign=True),
                    reached,
                    format_number(None if run.seconds_per_step is None else 1000 * run.seconds_per_step, 2),
                )
            )
    columns = (
        "arm",
        "seed",
        f"validation {plan.metric}",
        f"test {plan.metric}",
        f"test − {REFERENCE}",
        f"steps to {REFERENCE}'s final loss",
        "ms per step",
    )
    return Table(title="Every seed, at the arm's chosen learning rate", columns=columns, rows=tuple(rows))


def rates_table(plan: Plan, summaries: Summaries) -> Table:
    """Validation metric per learning rate and arm, from which the rate is chosen."""
    values = [value for summary in summaries.values() for rate in summary.rates for value in rate.validation]
    decimals = decimals_for(values)
    rows = []
    for index, learning_rate in enumerate(plan.learning_rates):
        cells = []
        for summary in summaries.values():
            rate = summary.rates[index]
            spread = statistics.stdev(rate.validation) if len(rate.validation) > 1 else None
            cell = format_number(rate.mean, decimals)
            if rate.failed_seeds or rate.missing_seeds:
                cell = _why_no_mean(rate, len(plan.seeds))
            elif spread is not None:
                cell += f" ± {format_number(spread, decimals)}"
            cells.append(cell + (" ◂" if learning_rate == summary.learning_rate else ""))
        rows.append((f"{learning_rate:g}", *cells))
    return Table(
        title=f"Validation {plan.metric} by learning rate",
        columns=("learning rate", *summaries),
        rows=tuple(rows),
        note="Mean ± standard deviation over seeds. ◂ chosen: the best mean, in a tie the smaller rate. "
        "A rate at which a seed failed is not chosen.",
    )


def conditioning_table(runs: Mapping[str, Sequence[RunMetrics]], moment: str) -> Table | None:
    """Condition number and row-norm spread per layer and arm; None if no run measured them."""
    rows = []
    for name, arm_runs in runs.items():
        for layer, numbers in conditioning_by_layer(arm_runs, moment).items():
            kappas = (format_number(numbers[key]) for key in ("kappa_before", "kappa_after"))
            spreads = (format_number(numbers[key], 4) for key in ("spread_before", "spread_after"))
            rows.append((name, layer, *kappas, *spreads))
    if not rows:
        return None
    return Table(
        title=f"Per layer, {MOMENT_WORDS[moment]}",
        columns=("arm", "layer", "kappa before C", "kappa after C", "spread before C", "spread after C"),
        rows=tuple(rows),
        text_columns=2,
        note=f"Medians over seeds. In {REFERENCE}, C is not applied: its columns after C show C A computed from its A.",
    )


def failures_table(summaries: Summaries) -> Table | None:
    """Every failed run with its reason; None if there is none."""
    failures = [failure for summary in summaries.values() for failure in summary.failures]
    if not failures:
        return None
    rows = tuple(
        (failure.key.arm, str(failure.key.seed), f"{failure.key.learning_rate:g}", failure.reason)
        for failure in failures
    )
    columns = ("arm", "seed", "learning rate", "reason")
    return Table(title="Runs that failed", columns=columns, rows=rows, text_columns=4)


def missing_table(summaries: Summaries) -> Table | None:
    """Every run that has not ended; None if there is none."""
    keys = [key for summary in summaries.values() for key in summary.missing]
    if not keys:
        return None
    rows = tuple((key.arm, str(key.seed), f"{key.learning_rate:g}") for key in keys)
    note = "A rate at which a run is missing is not chosen. precond compare --resume does them."
    columns = ("arm", "seed", "learning rate")
    return Table(title="Runs that have not ended yet", columns=columns, rows=rows, text_columns=3, note=note)


def machines_table(machines: Sequence[Machine]) -> Table:
    """One row per machine."""
    rows = tuple(_machine_row(machine) for machine in machines)
    columns = ("machine", "CPU", "GPU", "torch", "runs", "at a time")
    note = "At a time: the largest number of these runs that went on at once, which makes each of them slower."
    return Table(title="The machines that did the runs", columns=columns, rows=rows, text_columns=4, note=note)


def _machine_row(machine: Machine) -> tuple[str, ...]:
    found = machine.environment
    cpu = f"{found.get('cpu')}, {found.get('cpu_count')} cores, {found.get('threads')} per run"
    torch = str(found.get("packages", {}).get("torch"))
    return (machine.host, cpu, str(found.get("gpu") or "none"), torch, str(machine.runs), str(machine.at_a_time))


def arms_table(plan: Plan) -> Table:
    """The options of each arm."""
    rows = []
    for name, arm in plan.arms.items():
        options = "unchanged model" if arm is None else _options(arm.to_dict())
        variant = f"; task: {_options(plan.variants[name])}" if name in plan.variants else ""
        rows.append((name, options + variant))
    return Table(title="Arms", columns=("arm", "options"), rows=tuple(rows), text_columns=2)


def settings_table(title: str, settings: Mapping[str, Any]) -> Table | None:
    """Nested settings as rows with dotted names; None if there are none."""
    rows = tuple(_flatten(settings))
    return Table(title=title, columns=("setting", "value"), rows=rows, text_columns=2) if rows else None


def format_interval(interval: Interval | None, decimals: int) -> str:
    """``low to high``; an en dash without an interval, or without spread between the values."""
    if interval is None or interval.low is None or interval.high is None or not interval.has_spread:
        return format_number(None)
    low, high = (format_number(bound, decimals, sign=True) for bound in (interval.low, interval.high))
    return f"{low} to {high}"


def _chosen_rate(summary: ArmSummary) -> str:
    if summary.learning_rate is not None:
        return f"{summary.learning_rate:g}"
    return "not ended yet" if summary.missing else "failed"


def _why_no_mean(rate: RateSummary, seeds: int) -> str:
    """How many seeds failed and how many have not ended."""
    counts = {"failed": len(rate.failed_seeds), "not ended": len(rate.missing_seeds)}
    return ", ".join(f"{words} ({count} of {seeds} seeds)" for words, count in counts.items() if count)


def _mean(values: Sequence[float], decimals: int) -> str:
    return format_number(statistics.fmean(values) if values else None, decimals)


def _steps(summary: ArmSummary) -> str:
    """The mean over seeds if all of them reached the loss; a mean over the others would favor the arm."""
    if summary.steps is None:
        return format_number(None)
    reached = [step for step in summary.steps if step is not None]
    if len(reached) < len(summary.steps):
        return f"in {len(reached)} of {len(summary.steps)} seeds"
    return f"{statistics.fmean(reached):.0f} of {statistics.fmean(summary.total_steps):.0f}"


def _time_ratio(summary: ArmSummary) -> str:
    ratio = summary.time_ratio
    if ratio is None:
        return format_number(None)
    if ratio.low is None or ratio.high is None:
        return f"{ratio.mean:.2f}"
    return f"{ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in options.items())


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return rows
