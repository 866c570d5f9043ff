"""The plots of a comparison and the numbers that each shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from ...diagnostics.medians import median
from ..reporting import (
    Curve,
    HeatMap,
    LayerPoints,
    Picture,
    SeedInterval,
    plot_bands,
    plot_heat_maps,
    plot_intervals,
    plot_layers,
)
from .folder import plot_file
from .metrics import DURING, MOMENTS, RunMetrics
from .plan import REFERENCE, Plan
from .statistics import LEVEL, smooth, smoothing_window
from .summary import ArmSummary

Runs = Mapping[str, Sequence[RunMetrics]]
MOMENT_WORDS = {"initialization": "at initialization", "end": "at the end of training"}


def draw_figures(plan: Plan, summaries: Mapping[str, ArmSummary], runs: Runs) -> dict[str, Picture]:
    """Every plot for which there are numbers, by name; ``runs`` holds each arm's runs at its chosen rate."""
    pictures: dict[str, Picture | None] = {
        "difference": _difference(plan, summaries),
        "training-loss": _training_loss(plan, summaries, runs),
        "validation": _validation(plan, summaries, runs),
    }
    for moment in MOMENTS:
        pictures[f"kappa-{moment}"] = _layers(runs, moment, "kappa")
        pictures[f"spread-{moment}"] = _layers(runs, moment, "spread")
    pictures["kappa-training"] = _kappa_over_training(runs)
    pictures["kappa-training-layers"] = _kappa_of_layers_over_training(runs)
    return {
        name: dataclasses.replace(picture, file=plot_file(name))
        for name, picture in pictures.items()
        if picture is not None
    }


def conditioning_by_layer(runs: Sequence[RunMetrics], moment: str) -> dict[str, dict[str, float]]:
    """Per layer, in the order of the model, the median over seeds of each of the four numbers."""
    collected: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for row in run.conditioning:
            if row.get("moment", "end") == moment:
                numbers = collected.setdefault(row["layer"], {})
                for key in ("kappa_before", "kappa_after", "spread_before", "spread_after"):
                    # JSON files hold infinity as a string.
                    numbers.setdefault(key, []).append(float(row[key]))
    return {layer: {key: median(values) for key, values in numbers.items()} for layer, numbers in collected.items()}


def _label(summary: ArmSummary) -> str:
    return f"{summary.name} (learning rate {summary.learning_rate:g})"


def _difference(plan: Plan, summaries: Mapping[str, ArmSummary]) -> Picture | None:
    rows = [
        SeedInterval(label=name, style=style, values=one.values, mean=one.mean, low=one.low, high=one.high)
        for style, (name, one) in enumerate((name, summary.difference) for name, summary in summaries.items())
        if one is not None
    ]
    if not rows:
        return None
    better = "right" if plan.higher_is_better else "left"
    png = plot_intervals(
        rows,
        title=f"Difference in test {plan.metric}",
        x_label=f"arm minus {REFERENCE} ({better} of 0: better than {REFERENCE})",
        reference=REFERENCE,
    )
    return Picture(
        png,
        f"Difference in test {plan.metric} of each arm to {REFERENCE}, with intervals",
        f"Large mark: mean of the paired differences. Bar: {LEVEL:.0%} interval. Ticks below it: single seeds.",
    )


def _training_loss(plan: Plan, summaries: Mapping[str, ArmSummary], runs: Runs) -> Picture | None:
    curves = []
    for style, (name, arm_runs) in enumerate(runs.items()):
        # The mean over seeds ends with the shortest run.
        steps = min((len(run.losses) for run in arm_runs), default=0)
        if steps:
            window = smoothing_window(steps)
            smoothed = [smooth(run.losses[:steps], window) for run in arm_runs]
            x = list(range(window, steps + 1))
            curves.append(Curve(label=_label(summaries[name]), style=style, x=x, y_per_seed=smoothed))
    if not curves:
        return None
    positive = all(value > 0 for curve in curves for seed in curve.y_per_seed for value in seed)
    title = "Training loss"
    png = plot_bands(curves, title=title, x_label="optimizer step", y_label="training loss", log_y=positive)
    caption = "Mean over seeds; moving average over 5% of the steps. Band: lowest to highest seed."
    return Picture(png, f"Training loss of {', '.join(runs)} against the optimizer step", caption)


def _validation(plan: Plan, summaries: Mapping[str, ArmSummary], runs: Runs) -> Picture | None:
    curves = []
    for style, (name, arm_runs) in enumerate(runs.items()):
        steps = [[row["step"] for row in run.evaluations] for run in arm_runs]
        if steps and steps[0] and all(other == steps[0] for other in steps):
            values = [[row[plan.metric] for row in run.evaluations] for run in arm_runs]
            curves.append(Curve(label=_label(summaries[name]), style=style, x=steps[0], y_per_seed=values))
    if not curves:
        return None
    title = f"Validation {plan.metric}"
    png = plot_bands(curves, title=title, x_label="optimizer step", y_label=f"validation {plan.metric}")
    caption = "Mean over seeds. Band: lowest to highest seed."
    return Picture(png, f"Validation {plan.metric} of {', '.join(runs)} against the optimizer step", caption)


def _layers(runs: Runs, moment: str, quantity: str) -> Picture | None:
    groups = []
    for style, (name, arm_runs) in enumerate(runs.items()):
        layers = conditioning_by_layer(arm_runs, moment)
        if layers:
            before = [numbers[f"{quantity}_before"] for numbers in layers.values()]
            after = [numbers[f"{quantity}_after"] for numbers in layers.values()]
            groups.append(LayerPoints(label=name, style=style, before=before, after=after))
    if not groups:
        return None
    words = {"kappa": "condition number", "spread": "spread of row norms"}[quantity]
    title = f"{words.capitalize()} {MOMENT_WORDS[moment]}"
    png = plot_layers(groups, title=title, y_label=words, log_y=quantity == "kappa")
    return Picture(
        png, f"{title}, per attention layer, before and after C", f"{title}. Open marks: A. Filled marks: C A."
    )


def conditioning_by_step(run: RunMetrics, key: str) -> dict[int, dict[str, float]]:
    """Per recorded step of a run, ``key`` of every layer, in the order of steps and of the model."""
    steps: dict[int, dict[str, float]] = {}
    for row in run.conditioning:
        if row.get("moment") == DURING:
            steps.setdefault(int(row["step"]), {})[row["layer"]] = float(row[key])
    return dict(sorted(steps.items()))


def _same_steps(runs: Sequence[RunMetrics]) -> list[int]:
    """The recorded steps of an arm's runs; empty if the runs differ in them."""
    recorded = [list(conditioning_by_step(run, "kappa_before")) for run in runs]
    return recorded[0] if recorded and all(steps == recorded[0] for steps in recorded) else []


def _kappa_over_training(runs: Runs) -> Picture | None:
    curves = []
    for style, (name, arm_runs) in enumerate(runs.items()):
        steps = _same_steps(arm_runs)
        if steps:
            medians = [
                [_finite_median(of_step.values()) for of_step in conditioning_by_step(run, "kappa_before").values()]
                for run in arm_runs
            ]
            if _any_finite(medians):
                curves.append(Curve(label=name, style=style, x=steps, y_per_seed=medians))
    if not curves:
        return None
    title = "Condition number of A during training"
    png = plot_bands(curves, title=title, x_label="optimizer step", y_label="kappa, median over layers", log_y=True)
    caption = "Before C, on training batches. Mean over seeds; band: lowest to highest seed. Without singular layers."
    return Picture(png, f"{title} of {', '.join(runs)}", caption)


def _kappa_of_layers_over_training(runs: Runs) -> Picture | None:
    maps, layers, steps = [], [], []
    for name, arm_runs in runs.items():
        steps = _same_steps(arm_runs)
        if steps:
            recorded = [conditioning_by_step(run, "kappa_after") for run in arm_runs]
            layers = list(recorded[0][steps[0]])
            values = [
                [_finite_median(one[step].get(layer, math.nan) for one in recorded) for step in steps]
                for layer in layers
            ]
            if _any_finite(values):
                maps.append(HeatMap(title=name, values=values))
    if not maps:
        return None
    png = plot_heat_maps(
        maps, row_labels=layers, column_labels=steps, x_label="optimizer step", value_label="kappa of C A", log=True
    )
    caption = "After C (plain: C A computed from its A). Median over seeds. Crossed out: singular, or not a number."
    return Picture(png, "Condition number of every layer during training, a map per arm", caption)


def _any_finite(values: Sequence[Sequence[float]]) -> bool:
    """False where every layer is singular, as with a rank below the head dimension."""
    return any(math.isfinite(value) for row in values for value in row)


def _finite_median(values: Iterable[float]) -> float:
    """Over the finite values; NaN if there is none."""
    return median(value for value in values if math.isfinite(value))
