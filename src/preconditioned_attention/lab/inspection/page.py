"""The page of an inspection: its sections in order, and their text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...diagnostics.medians import median
from ..reporting import (
    Callout,
    Figures,
    HeatMap,
    Page,
    Picture,
    Profile,
    Section,
    Table,
    Text,
    format_number,
    heat_limits,
    plot_heat_maps,
    plot_profiles,
)
from .findings import CHANGED, explanation, helped, most_and_least, summary
from .measurement import Head, Inspection

Numbers = Sequence[tuple[str, Callable[[Head], float]]]

INTRODUCTION = (
    "Preconditioned attention multiplies the output A of every attention head (one row per token) by the diagonal "
    "matrix C with entries 1 / ‖A_i‖, so that every row has norm one. This page shows how that changes each head's "
    "condition number kappa, the largest singular value over the smallest."
)

TERMS = (
    (
        "kappa before and after C",
        "Of A and of C A. A large value means that some direction of the head's output is nearly lost. If the model is "
        "not converted, C A is computed from the A of the plain model. A crossed cell is numerically singular.",
    ),
    (
        "Spread of row norms",
        "Standard deviation over mean of the norms of A's rows. C can change kappa only if it is well above zero.",
    ),
    (
        "Common direction",
        "The share of the matrix that one row common to all tokens explains, from 0 to 1. Near 1 the rows are nearly "
        "parallel, which makes kappa large and which no row scaling changes.",
    ),
    (
        "Entropy",
        "Mean over the tokens, in nats: 0 if each attends to one token, log N if it attends equally to all N.",
    ),
    (
        "Limits",
        "Whether training with C gives a better model needs runs with and without it (precond compare). Numbers are "
        "medians over two samples of the input named above, and depend on it.",
    ),
)


def build_page(
    name: str,
    inspections: Sequence[Inspection],
    *,
    input_words: str,
    conversion: Table,
    environment: Mapping[str, Any],
) -> Page:
    """The page for one inspection, or for two of the same architecture side by side (initialization, checkpoint)."""
    titles = [one.weights for one in inspections]
    facts = tuple(
        (f"Weights {index}" if len(titles) > 1 else "Weights", title) for index, title in enumerate(titles, 1)
    )
    seen = Text((INTRODUCTION,), (*facts, ("Input", input_words), ("Arithmetic", _precision(inspections))))
    sections = [
        Section("Findings", (*map(_finding, inspections), seen)),
        *(Section(f"Layer by head: {one.weights}", (_beside(one, inspections),)) for one in inspections),
        Section("Where C helps most, and where least", tuple(t for one in inspections for t in _extremes(one))),
        Section("Singular values", tuple(map(_profiles, inspections))),
        Section("Entropy of attention", _entropy(inspections)),
        Section("How to read this", (Text(terms=TERMS),)),
        Section("Every head", tuple(map(_every_head, inspections)), folded=True),
        Section("Conversion", (conversion,), folded=True),
        Section("Where it ran", (_environment(environment),), folded=True),
    ]
    return Page(
        title=f"Attention of {name}",
        subtitle=f"{len(inspections[0].layers)} attention layers, {len(inspections[0].heads)} heads",
        sections=tuple(sections),
        footer="Written by precond inspect.",
    )


def layer_table(name: str, inspection: Inspection) -> Table:
    """One line per layer, medians over its heads: for the terminal."""
    rows = []
    for layer in inspection.layers:
        heads = [head for head in inspection.heads if head.layer == layer]
        numbers = ("kappa_before", "kappa_after", "spread", "common_direction", "entropy")
        medians = [_median(getattr(head, number) for head in heads) for number in numbers]
        rows.append((layer, f"{len(heads)}", f"{heads[0].rows} x {heads[0].head_dim}", *map(_cell, medians)))
    return Table(
        title=f"{name}: {inspection.weights}",
        columns=("layer", "heads", "rows x dim", "kappa", "kappa after C", "spread", "common direction", "entropy"),
        rows=tuple(rows),
        note="Medians over the heads with a finite value; –: there is none.",
    )


def _precision(inspections: Sequence[Inspection]) -> str:
    return f"{inspections[0].precision}, evaluation mode; singular values in float64"


def _finding(inspection: Inspection) -> Callout:
    return Callout("open" if helped(inspection.heads) else "warning", inspection.weights, summary(inspection))


def _beside(one: Inspection, inspections: Sequence[Inspection]) -> Figures:
    """kappa, and next to it what explains it; the color scale is the same for every inspection."""
    kappa = [("A", lambda head: head.kappa_before), ("C A", lambda head: head.kappa_after)]
    shares = [
        ("spread of row norms", lambda head: head.spread),
        ("common direction", lambda head: head.common_direction),
    ]
    low, high = heat_limits([one for other in inspections for one in _heat_maps(other, shares)])
    return Figures(
        (
            _picture(
                one, _heat_maps(one, kappa), "condition number kappa",
                limits=heat_limits([one for other in inspections for one in _heat_maps(other, kappa)]), log=True,
            ),
            _picture(one, _heat_maps(one, shares), "spread, share", limits=(min(0.0, low), max(1.0, high)), log=False),
        )
    )  # fmt: skip


def _heat_maps(inspection: Inspection, numbers: Numbers) -> list[HeatMap]:
    return [HeatMap(title=title, values=_grid(inspection, value)) for title, value in numbers]


def _picture(
    inspection: Inspection, maps: Sequence[HeatMap], words: str, *, limits: tuple[float, float], log: bool
) -> Picture:
    png = plot_heat_maps(maps, row_labels=inspection.layers, x_label="head", value_label=words, limits=limits, log=log)
    titles = " and ".join(one.title for one in maps)
    return Picture(
        png,
        f"{titles}: a row per attention layer, a column per head, {inspection.weights}",
        f"{titles[:1].upper()}{titles[1:]}, a row per attention layer and a column per head.",
    )


def _grid(inspection: Inspection, value: Callable[[Head], float]) -> list[list[float]]:
    return [[value(head) for head in inspection.heads if head.layer == layer] for layer in inspection.layers]


def _extremes(inspection: Inspection) -> tuple[Table | Text, ...]:
    most, least = most_and_least(inspection)
    blocks: list[Table | Text] = [Text((f"{inspection.weights.capitalize()}.",))]
    if most:
        blocks.append(_heads_table("Where C helps most", most))
    else:
        blocks.append(Text((f"C improves no head: it divides no condition number by {CHANGED:g} or more.",)))
    return (*blocks, _heads_table("Where C helps least", least)) if least else tuple(blocks)


def _heads_table(title: str, heads: Sequence[Head]) -> Table:
    rows = tuple(
        (head.layer, f"{head.head}", explanation(head), *map(_cell, (head.kappa_before, head.kappa_after, head.spread)))
        for head in heads
    )
    columns = ("layer", "head", "why", "kappa", "kappa after C", "spread")
    return Table(title=title, columns=columns, rows=rows, text_columns=3)


def _profiles(inspection: Inspection) -> Figures:
    pictures = []
    for words, attribute in (("before C", "before"), ("after C", "after")):
        last = max(1, len(inspection.profiles) - 1)
        curves = [
            Profile(label=profile.layer, depth=index / last, values=getattr(profile, attribute))
            for index, profile in enumerate(inspection.profiles)
            if getattr(profile, attribute)
        ]
        if curves:
            png = plot_profiles(
                curves, title=f"Singular values {words}", x_label="index", y_label="share of the largest"
            )
            caption = f"Geometric mean over heads and samples; dark: first layers, light: last. {inspection.weights}."
            pictures.append(Picture(png, f"Singular values of every layer {words}, {inspection.weights}", caption))
    return Figures(tuple(pictures))


def _entropy(inspections: Sequence[Inspection]) -> tuple[Figures | Text, ...]:
    blocks: list[Figures | Text] = []
    maps = [_heat_maps(one, [("entropy", lambda head: head.entropy)]) for one in inspections]
    limits = heat_limits([one for group in maps for one in group])
    if any(math.isfinite(head.entropy) for one in inspections for head in one.heads):
        pairs = zip(inspections, maps, strict=True)
        words = "entropy of attention (nats)"
        blocks.append(Figures(tuple(_picture(one, group, words, limits=limits, log=False) for one, group in pairs)))
    reasons: dict[str, list[str]] = {}
    for layer, reason in inspections[0].no_entropy.items():
        reasons.setdefault(reason, []).append(layer)
    for reason, layers in reasons.items():
        more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        blocks.append(Text((f"Not available for {layers[0]}{more}: {reason}.",)))
    return tuple(blocks)


def _every_head(inspection: Inspection) -> Table:
    numbers = ("kappa_before", "kappa_after", "spread", "common_direction", "entropy")
    rows = tuple(
        (head.layer, f"{head.head}", f"{head.rows} x {head.head_dim}", *(_cell(getattr(head, n)) for n in numbers))
        for head in inspection.heads
    )
    columns = ("layer", "head", "rows x dim", "kappa", "kappa after C", "spread", "common direction", "entropy")
    return Table(title=inspection.weights, columns=columns, rows=rows)


def _environment(environment: Mapping[str, Any]) -> Table:
    packages = {f"package {name}": version for name, version in environment["packages"].items()}
    values = {**{name: value for name, value in environment.items() if name != "packages"}, **packages}
    rows = tuple((name, "–" if value is None else str(value)) for name, value in values.items())
    return Table(title="", columns=("what", "value"), rows=rows, text_columns=2)


def _median(values: Iterable[float]) -> float:
    """The median without NaN."""
    return median(value for value in values if not math.isnan(value))


def _cell(value: float) -> str:
    return format_number(None if math.isnan(value) else value)
