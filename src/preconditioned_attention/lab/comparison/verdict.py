"""The outcome of each arm, classified by its interval, and the sentences that state it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from ..reporting import decimals_for, format_number
from .plan import REFERENCE, Plan
from .statistics import LEVEL, Interval
from .summary import ArmSummary

FEW_SEEDS = 3


class Outcome(Enum):
    """The result of an arm relative to the reference."""

    REFERENCE = "reference"
    BETTER = "better"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    NO_INTERVAL = "no interval"
    FAILED = "failed"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one arm and the sentences that state it, the most important one first."""

    arm: str
    outcome: Outcome
    sentences: tuple[str, ...]


def difference_decimals(summaries: Mapping[str, ArmSummary]) -> int:
    """Decimals that show the metric with four digits and the narrowest interval with two."""
    metric = decimals_for(value for summary in summaries.values() for value in (*summary.test, *summary.validation))
    intervals = [summary.difference for summary in summaries.values() if summary.difference is not None]
    widths = [
        one.high - one.low for one in intervals if one.low is not None and one.high is not None and one.has_spread
    ]
    return max([metric, *(decimals_for([width / 2], digits=2) for width in widths)])


def baseline_sentences(plan: Plan, summaries: Mapping[str, ArmSummary]) -> tuple[str, ...]:
    """The mean test metric of every arm relative to each predictor without a model."""
    decimals = difference_decimals(summaries)
    tested = {name: statistics.fmean(summary.test) for name, summary in summaries.items() if summary.test}
    sentences = []
    for name, score in plan.baselines.items():
        sides: dict[str, list[str]] = {"better": [], "not better": []}
        for arm, value in tested.items():
            better = value > score if plan.higher_is_better else value < score
            sides["better" if better else "not better"].append(f"{arm} ({format_number(value, decimals)})")
        words = [f"{side}: {', '.join(arms)}" for side, arms in sides.items() if arms]
        sentences.append(f"{name}: test {plan.metric} {format_number(score, decimals)}; {'; '.join(words)}.")
    return tuple(sentences)


def classify(summary: ArmSummary, *, higher_is_better: bool) -> Outcome:
    """The outcome of one arm: better or worse only if the whole interval of the difference lies on one side of 0."""
    if summary.learning_rate is None:
        return Outcome.INCOMPLETE if summary.missing else Outcome.FAILED
    if summary.name == REFERENCE:
        return Outcome.REFERENCE
    difference = summary.difference
    if difference is None or difference.low is None or difference.high is None or not difference.has_spread:
        return Outcome.NO_INTERVAL
    if difference.low <= 0 <= difference.high:
        return Outcome.INCONCLUSIVE
    return Outcome.BETTER if (difference.low > 0) == higher_is_better else Outcome.WORSE


def make_verdicts(plan: Plan, summaries: Mapping[str, ArmSummary]) -> dict[str, Verdict]:
    """One verdict per arm, in the plan's order."""
    decimals = difference_decimals(summaries)
    reference = classify(summaries[REFERENCE], higher_is_better=plan.higher_is_better)
    verdicts = {}
    for name, summary in summaries.items():
        outcome = classify(summary, higher_is_better=plan.higher_is_better)
        sentences = [
            _main_sentence(outcome, summary, plan, decimals, reference),
            *_seed_sentences(outcome, summary),
            *_rate_sentences(summary),
            *_missing_sentences(summary),
            *_failure_sentences(summary),
        ]
        verdicts[name] = Verdict(name, outcome, tuple(sentences))
    return verdicts


_REASONS = {Outcome.FAILED: "failed", Outcome.INCOMPLETE: "has no result yet"}


def _main_sentence(outcome: Outcome, summary: ArmSummary, plan: Plan, decimals: int, reference: Outcome) -> str:
    if outcome is Outcome.FAILED:
        return "At every learning rate a seed failed, so there is no result to compare."
    if outcome is Outcome.INCOMPLETE:
        return "At no learning rate has every seed finished, so there is no result yet."
    if outcome is Outcome.REFERENCE:
        mean = format_number(sum(summary.test) / len(summary.test), decimals)
        seeds = _count(len(summary.test), "seed")
        return f"Test {plan.metric} {mean}, the mean of {seeds}. Differences of the other arms are relative to it."
    difference = summary.difference
    if difference is None:
        return f"The reference {REFERENCE} {_REASONS[reference]}, so there is no difference to compute."
    return _difference_sentence(outcome, difference, plan, decimals)


def _difference_sentence(outcome: Outcome, difference: Interval, plan: Plan, decimals: int) -> str:
    count, metric = _count(len(difference.values), "seed"), f"test {plan.metric}"
    mean = format_number(difference.mean, decimals, sign=True)
    if difference.low is None or difference.high is None:
        return f"The difference in {metric} is {mean} with {count}, too few for an interval."
    if not difference.has_spread:
        return f"The difference in {metric} is {mean} in each of {count}: without spread there is no interval."
    low, high = (format_number(bound, decimals, sign=True) for bound in (difference.low, difference.high))
    words = f"The mean difference in {metric} is {mean} ({LEVEL:.0%} interval {low} to {high}, {count})"
    if outcome is Outcome.INCONCLUSIVE:
        gain, loss = (difference.high, -difference.low) if plan.higher_is_better else (-difference.low, difference.high)
        return (
            f"{words}; the interval contains 0. It excludes gains above {format_number(gain, decimals)} and losses "
            f"above {format_number(loss, decimals)}."
        )
    return f"{words}: {'a gain' if outcome is Outcome.BETTER else 'a loss'}, the interval excludes 0."


def _seed_sentences(outcome: Outcome, summary: ArmSummary) -> list[str]:
    count = len(summary.test)
    without = (Outcome.FAILED, Outcome.INCOMPLETE, Outcome.REFERENCE, Outcome.NO_INTERVAL)
    if outcome in without or count >= FEW_SEEDS:
        return []
    return [f"With {count} seeds the interval is unreliable; run more."]


def _rate_sentences(summary: ArmSummary) -> list[str]:
    if summary.learning_rate is None or summary.bracketed:
        return []
    if len(summary.rates) == 1:
        return [f"There was one learning rate ({summary.learning_rate:g}), so none was chosen on validation data."]
    return [
        f"The chosen learning rate {summary.learning_rate:g} is at the edge of the rates that finished: "
        "the grid does not bracket the optimum, and a wider one may change the result."
    ]


def _missing_sentences(summary: ArmSummary) -> list[str]:
    if not summary.missing:
        return []
    words = "has" if len(summary.missing) == 1 else "have"
    changes = "" if summary.learning_rate is None else "; then another learning rate may be chosen"
    return [f"{len(summary.missing)} of {_count(_total(summary), 'run')} {words} not ended yet{changes}."]


def _total(summary: ArmSummary) -> int:
    rates = summary.rates
    return sum(len(rate.validation) + len(rate.failed_seeds) + len(rate.missing_seeds) for rate in rates)


def _failure_sentences(summary: ArmSummary) -> list[str]:
    if not summary.failures:
        return []
    first, total = summary.failures[0], _total(summary)
    return [
        f"{len(summary.failures)} of {_count(total, 'run')} failed, the first with "
        f"seed {first.key.seed}, learning rate {first.key.learning_rate:g}: {first.reason}."
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
