"""The report as a page: what stands where, and the words around the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..reporting import Callout, Figures, Listing, Page, Picture, Section, Text
from ..reporting.html import Block, Tone
from .metrics import MOMENTS, SAMPLES, RunMetrics
from .plan import REFERENCE, Plan
from .statistics import LEVEL
from .summary import ArmSummary
from .tables import (
    arms_table,
    conditioning_table,
    failures_table,
    rates_table,
    results_table,
    seeds_table,
    settings_table,
)
from .verdict import Outcome, Verdict, baseline_sentences

TONES: dict[Outcome, Tone] = {
    Outcome.REFERENCE: "open",
    Outcome.BETTER: "good",
    Outcome.WORSE: "bad",
    Outcome.UNDECIDED: "open",
    Outcome.NO_INTERVAL: "warning",
    Outcome.FAILED: "warning",
}

INTRODUCTION = (
    "Preconditioned attention multiplies the output A of every attention head (one row per token) by the diagonal "
    "matrix C with entries 1 / ‖A_i‖, so that every row has length one. The arms below differ in that alone."
)

CONDITIONING = (
    "Measured on one fixed batch. The condition number kappa of A is its largest singular value over its smallest. "
    "C can lower it only as far as the lengths of the rows differ: the spread is their standard deviation over their "
    "mean. Open marks show A, filled ones C A. In the plain arm C is not applied: there C A is what it would give. "
    "Medians over samples, heads and seeds; a mark is missing where the value is infinite. precond compare looks in "
    "double precision, where a kappa above about 1e15 says “singular” and no more; in single precision, 1e7."
)


def build_page(
    plan: Plan,
    summaries: Mapping[str, ArmSummary],
    verdicts: Mapping[str, Verdict],
    runs: Mapping[str, Sequence[RunMetrics]],
    pictures: Mapping[str, Picture],
    *,
    title: str,
    environment: Mapping[str, Any],
) -> Page:
    """Put tables, pictures and words in order; a section without content is left out."""
    beside = baseline_sentences(plan, summaries)
    results: list[Block | None] = [results_table(plan, summaries), Text(beside) if beside else None]
    results.append(_figures(pictures, "difference"))
    conditioning = [conditioning_table(runs, moment) for moment in MOMENTS]
    plots = [_figures(pictures, *(f"{quantity}-{moment}" for moment in MOMENTS)) for quantity in ("kappa", "spread")]
    plots.append(_figures(pictures, "kappa-training", "kappa-training-layers"))
    settings = [arms_table(plan), settings_table("Settings of the runs", plan.settings)]
    sections = [
        _section("What these runs allow to say", Text(_introduction(plan)), *_callouts(verdicts)),
        _section("Results", *results),
        _section("Failed runs", failures_table(summaries)),
        _section("Curves", _figures(pictures, "training-loss", "validation")),
        _section("What the models do", *_arm_pictures(runs), _arm_samples(runs)),
        _section("Choice of the learning rate", rates_table(plan, summaries)),
        _section("Inside attention", Text((CONDITIONING,)), *plots) if any(conditioning) else None,
        _section("How to read this", how_to_read(plan)),
        _section("Every seed", seeds_table(plan, summaries, runs), folded=True),
        _section("Every layer", *conditioning, folded=True),
        _section("Settings", *settings, settings_table("Where it ran", environment), folded=True),
    ]
    counts = (len(plan.arms), len(plan.seeds), len(plan.learning_rates))
    return Page(
        title=title,
        subtitle="arms × seeds × learning rates: {} × {} × {} = {} runs".format(*counts, math.prod(counts)),
        sections=tuple(section for section in sections if section is not None),
        footer="Written by precond compare. Every number is in results.json beside this page.",
    )


def _introduction(plan: Plan) -> tuple[str, ...]:
    if not plan.variants:
        return (INTRODUCTION,)
    names = ", ".join(plan.variants)
    return (
        INTRODUCTION,
        f"But for {names}: another model, made by other options of the task (see the settings), which may start from "
        "other weights. What it shows beside the others is not the effect of C.",
    )


def _section(title: str, *blocks: Block | None, folded: bool = False) -> Section | None:
    present = tuple(block for block in blocks if block is not None)
    return Section(title, present, folded) if present else None


def _figures(pictures: Mapping[str, Picture], *names: str) -> Figures | None:
    present = tuple(pictures[name] for name in names if name in pictures)
    return Figures(present) if present else None


def _arm_pictures(runs: Mapping[str, Sequence[RunMetrics]]) -> list[Block | None]:
    """Per picture of the tasks, every arm's with its first seed, side by side."""
    first = {arm: arm_runs[0].pictures for arm, arm_runs in runs.items() if arm_runs}
    names = dict.fromkeys(name for pictures in first.values() for name in pictures)
    return [
        _figures({arm: _of_arm(arm, own[name]) for arm, own in first.items() if name in own}, *first) for name in names
    ]


def _arm_samples(runs: Mapping[str, Sequence[RunMetrics]]) -> Listing | None:
    """What every arm's model of the first seed wrote, arm below arm for each of the things that it was given."""
    first = {arm: arm_runs[0].extra.get(SAMPLES, {}) for arm, arm_runs in runs.items() if arm_runs}
    names = dict.fromkeys(name for samples in first.values() for name in samples)
    items = [(f"{arm}, first seed, {name}", own[name]) for name in names for arm, own in first.items() if name in own]
    return Listing(tuple(items)) if items else None


def _of_arm(arm: str, picture: Picture) -> Picture:
    return Picture(picture.png, f"{arm}: {picture.description}", f"{arm}, first seed. {picture.caption}")


def _callouts(verdicts: Mapping[str, Verdict]) -> list[Block]:
    return [Callout(TONES[one.outcome], f"{one.arm}: {one.outcome.value}", one.sentences) for one in verdicts.values()]


def how_to_read(plan: Plan) -> Text:
    """The definitions of what the page shows."""
    better = "higher" if plan.higher_is_better else "lower"
    terms = (
        (
            "Same start",
            "Each run of a seed started from the same weights and the same random state in every arm and at every "
            "learning rate; hashes of both were compared, and a difference would have stopped the comparison.",
        ),
        (
            "Learning rate",
            f"Chosen for each arm by the best mean validation {plan.metric} ({better} is better). Test data chose "
            "nothing. A rate at the edge of the grid may not be the arm's best.",
        ),
        *_tested_weights(plan),
        (
            "Difference and interval",
            f"Test {plan.metric} of the arm minus that of {REFERENCE}, seed by seed; its mean, and the {LEVEL:.0%} "
            "interval by Student's t. The interval covers what changing the seed does (weights, order of batches), not "
            "the choice of data, model or task. With a few seeds it rests on the supposition that differences are "
            "about normal. Each interval stands for itself: with several arms, the chance that at least one of them "
            "misses is larger than 5 %.",
        ),
        (
            f"Steps to {REFERENCE}'s final loss",
            "The training loss is averaged over a window of 5 % of the steps. Counted is the first step at which an "
            f"arm's averaged loss is at or below the last averaged loss of {REFERENCE} with the same seed. "
            f"{REFERENCE} itself is counted the same way and may get there before its last step. Each arm runs at its "
            "own learning rate.",
        ),
        (
            "Time per step",
            f"The geometric mean of the ratio to {REFERENCE}, paired by seed and learning rate, with its interval. "
            "It holds for the machine named below and for nothing else.",
        ),
        (
            "What it does not say",
            "A result here is one about this task, this model and these settings.",
        ),
    )
    return Text(terms=terms)


def _tested_weights(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Which weights of a run count, where they are not those of its last step."""
    if not plan.settings.get("keep_best"):
        return ()
    words = (
        f"Each run is tested with the weights whose evaluation during training had the best validation {plan.metric}."
    )
    return (("Weights", words),)
