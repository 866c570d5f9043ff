"""The report of a comparison: its sections in order, and their text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..reporting import Callout, Figures, Listing, Page, Picture, Section, Text
from ..reporting.html import Block, Tone
from .folder import RUNS, SUMMARY, picture_file
from .machines import Machine
from .metrics import MOMENTS, SAMPLES, RunMetrics
from .plan import REFERENCE, Plan
from .statistics import LEVEL
from .summary import ArmSummary
from .tables import (
    arms_table,
    conditioning_table,
    failures_table,
    machines_table,
    missing_table,
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
    Outcome.INCONCLUSIVE: "open",
    Outcome.NO_INTERVAL: "warning",
    Outcome.FAILED: "warning",
    Outcome.INCOMPLETE: "warning",
}

INTRODUCTION = (
    "Preconditioned attention multiplies the output A of every attention head (one row per token) by the diagonal "
    "matrix C with entries 1 / ‖A_i‖, so that every row has length one. The arms differ only in whether "
    "and how C is applied."
)

CONDITIONING = (
    "Measured on one fixed batch. The condition number kappa of A is its largest singular value over its smallest. "
    "C can lower it only if row norms differ: their spread is the standard deviation over the mean. Open marks show A, "
    "filled marks C A; in the plain arm, where C is not applied, C A is computed from its A. Medians over samples, "
    "heads and seeds; infinite values have no mark. precond compare computes in float64, where a kappa above about "
    "1e15 only means numerically singular (in float32, 1e7)."
)

FOOTER = (
    f"Written by precond compare. The pictures are files in the folder of this page: to share the report, send the "
    f"folder (without runs/), or print this page to a PDF file. The numbers are in {SUMMARY}, every run in {RUNS}."
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
    machines: Sequence[Machine] = (),
) -> Page:
    """The page with its sections in order; a section without content is left out."""
    beside = baseline_sentences(plan, summaries)
    results: list[Block | None] = [results_table(plan, summaries), Text(beside) if beside else None]
    results.append(_figures(pictures, "difference"))
    conditioning = [conditioning_table(runs, moment) for moment in MOMENTS]
    plots = [_figures(pictures, *(f"{quantity}-{moment}" for moment in MOMENTS)) for quantity in ("kappa", "spread")]
    plots.append(_figures(pictures, "kappa-training", "kappa-training-layers"))
    settings = [arms_table(plan), settings_table("Settings of the runs", plan.settings)]
    sections = [
        _section("Findings", Text(_introduction(plan)), *_callouts(verdicts)),
        _section("Results", *results),
        _section("Failed runs", failures_table(summaries)),
        _section("Missing runs", missing_table(summaries)),
        _section("Curves", _figures(pictures, "training-loss", "validation")),
        _section("Model outputs", *_arm_pictures(runs), _arm_samples(runs)),
        _section("Choice of the learning rate", rates_table(plan, summaries)),
        _section("Condition numbers", Text((CONDITIONING,)), *plots) if any(conditioning) else None,
        _section("How to read this", how_to_read(plan, machines)),
        _section("Every seed", seeds_table(plan, summaries, runs), folded=True),
        _section("Every layer", *conditioning, folded=True),
        _section("Machines", machines_table(machines)) if _shared(machines) else None,
        _section("Settings", *settings, settings_table("Where it ran", environment), folded=True),
    ]
    return Page(
        title=title,
        subtitle=_subtitle(plan, sum(len(summary.missing) for summary in summaries.values())),
        sections=tuple(section for section in sections if section is not None),
        footer=FOOTER,
    )


def _subtitle(plan: Plan, missing: int) -> str:
    counts = (len(plan.arms), len(plan.seeds), len(plan.learning_rates))
    words = "arms × seeds × learning rates: {} × {} × {} = {} runs".format(*counts, math.prod(counts))
    return f"{words}, {missing} of them not ended yet" if missing else words


def _shared(machines: Sequence[Machine]) -> bool:
    """Whether there were several machines, or several runs on one at a time."""
    return len(machines) > 1 or any(machine.at_a_time > 1 for machine in machines)


def _introduction(plan: Plan) -> tuple[str, ...]:
    if not plan.variants:
        return (INTRODUCTION,)
    names = ", ".join(plan.variants)
    return (
        INTRODUCTION,
        f"Except {names}: another model, built with other options of the task (see the settings), which may have other "
        "initial weights. Its difference to the other arms is not the effect of C alone.",
    )


def _section(title: str, *blocks: Block | None, folded: bool = False) -> Section | None:
    present = tuple(block for block in blocks if block is not None)
    return Section(title, present, folded) if present else None


def _figures(pictures: Mapping[str, Picture], *names: str) -> Figures | None:
    present = tuple(pictures[name] for name in names if name in pictures)
    return Figures(present) if present else None


def _arm_pictures(runs: Mapping[str, Sequence[RunMetrics]]) -> list[Block | None]:
    """For each picture of the task, those of every arm's first seed, side by side."""
    first = {arm: arm_runs[0].pictures for arm, arm_runs in runs.items() if arm_runs}
    names = dict.fromkeys(name for pictures in first.values() for name in pictures)
    return [
        _figures({arm: _of_arm(arm, name, own[name]) for arm, own in first.items() if name in own}, *first)
        for name in names
    ]


def _arm_samples(runs: Mapping[str, Sequence[RunMetrics]]) -> Listing | None:
    """Texts that the model of every arm's first seed generated, grouped by prompt."""
    first = {arm: arm_runs[0].extra.get(SAMPLES, {}) for arm, arm_runs in runs.items() if arm_runs}
    names = dict.fromkeys(name for samples in first.values() for name in samples)
    items = [(f"{arm}, first seed, {name}", own[name]) for name in names for arm, own in first.items() if name in own]
    return Listing(tuple(items)) if items else None


def _of_arm(arm: str, name: str, picture: Picture) -> Picture:
    description, caption = f"{arm}: {picture.description}", f"{arm}, first seed. {picture.caption}"
    return Picture(picture.png, description, caption, file=picture_file(name, arm))


def _callouts(verdicts: Mapping[str, Verdict]) -> list[Block]:
    return [Callout(TONES[one.outcome], f"{one.arm}: {one.outcome.value}", one.sentences) for one in verdicts.values()]


def how_to_read(plan: Plan, machines: Sequence[Machine] = ()) -> Text:
    """The definitions of the quantities on the page."""
    better = "higher" if plan.higher_is_better else "lower"
    terms = (
        (
            "Same start",
            "For each seed, initial weights and random state are the same in every arm and at every learning rate; "
            "their hashes were compared, and a difference would have stopped the comparison.",
        ),
        (
            "Learning rate",
            f"Chosen for each arm by the best mean validation {plan.metric} ({better} is better), never on test "
            "data. A rate at the edge of the grid may not be the arm's best.",
        ),
        *_tested_weights(plan),
        (
            "Difference and interval",
            f"Test {plan.metric} of the arm minus that of {REFERENCE}, seed by seed; its mean, and the {LEVEL:.0%} "
            "interval by Student's t. It reflects variation between seeds (initial weights, order of batches), not "
            "between data sets, models or tasks. With few seeds it relies on the assumption that differences are "
            "approximately normal. Intervals are not corrected for multiple comparisons: with several arms, the "
            "probability that at least one of them misses the true mean is larger than 5%.",
        ),
        (
            f"Steps to {REFERENCE}'s final loss",
            "The first step at which the arm's training loss, as a moving average over 5% of the steps, is at or below "
            f"the final one of {REFERENCE} with the same seed. {REFERENCE} itself may reach it before its last step. "
            "Each arm has its own learning rate.",
        ),
        (
            "Time per step",
            f"The geometric mean of the ratio to {REFERENCE}, paired by seed and learning rate, with its interval. "
            + (_SHARED if _shared(machines) else "It holds for the machine named below only."),
        ),
        (
            "Limits",
            "The results hold for this task, this model and these settings.",
        ),
    )
    return Text(terms=terms)


_SHARED = (
    "It holds for the machines named below only, of pairs that one machine measured. Runs that went on at the same "
    "time slowed each other."
)


def _tested_weights(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Which weights are tested, unless those of the last step."""
    if not plan.settings.get("keep_best"):
        return ()
    words = (
        f"Each run is tested with the weights whose evaluation during training had the best validation {plan.metric}."
    )
    return (("Weights", words),)
