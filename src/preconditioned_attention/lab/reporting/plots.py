"""Plots as PNG bytes. They use Matplotlib's figure objects and none of its global state."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which people with any common color blindness can tell apart; gray for the reference.
COLORS = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH_INCHES = 6.4
DOTS_PER_INCH = 150


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve per seed, all at the same ``x``; ``style`` selects color and line."""

    label: str
    style: int
    x: Sequence[float]
    y_per_seed: Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class SeedInterval:
    """The values of the seeds, their mean, and its interval (None where there is none)."""

    label: str
    style: int
    values: Sequence[float]
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class LayerPoints:
    """Two numbers per layer, before and after."""

    label: str
    style: int
    before: Sequence[float]
    after: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio to a reference: its median and range. Equal labels share a line."""

    label: str
    candidate: str
    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Numbers in rows and columns; rows may differ in length, and NaN is a missing number."""

    title: str
    values: Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One falling curve, such as the singular values of a layer's heads over the largest; ``depth`` is from 0 to 1."""

    label: str
    depth: float
    values: Sequence[float]


def _color(style: int) -> str:
    return COLORS[style % len(COLORS)]


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = require("matplotlib.figure", extra="train").Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8a94a0")
    axes.tick_params(color="#8a94a0", labelsize=10)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _log_scale(axes: Axes) -> None:
    """A logarithmic axis with plain numbers, and with 2 and 5 between the powers of ten if there are few."""
    ticker = require("matplotlib.ticker", extra="train")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high / low < 1000
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12 if few else 7))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def encode_png(figure: Figure, *, all_colors: bool = False) -> bytes:
    """The figure as a PNG file: a palette of 256 colors takes a third of the bytes of all colors."""
    image_module = require("PIL.Image", extra="train")
    raw, png = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=DOTS_PER_INCH, facecolor="white", pil_kwargs={"compress_level": 1})
    image = image_module.open(raw).convert("RGB")
    if not all_colors:
        # Maximum coverage keeps the colors of thin lines, which cover few pixels.
        image = image.quantize(256, method=image_module.Quantize.MAXCOVERAGE, dither=image_module.Dither.NONE)
    image.save(png, format="png", optimize=True)
    return png.getvalue()


def plot_bands(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str, log_y: bool = False) -> bytes:
    """Each curve's mean over seeds as a line, and the range from the lowest to the highest seed as a band."""
    np = require("numpy", extra="train")
    figure, axes = _figure(3.9)
    for curve in curves:
        values = np.asarray(curve.y_per_seed, dtype=float)
        line = LINE_STYLES[curve.style % len(LINE_STYLES)]
        axes.plot(
            curve.x, values.mean(axis=0), line, color=_color(curve.style), linewidth=1.8, label=curve.label, zorder=3
        )
        if len(values) > 1:
            band = (values.min(axis=0), values.max(axis=0))
            axes.fill_between(curve.x, *band, color=_color(curve.style), alpha=0.16, linewidth=0)
    if log_y:
        _log_scale(axes)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=10.5)
    axes.set_ylabel(y_label, fontsize=10.5)
    axes.legend(frameon=False, fontsize=10)
    return encode_png(figure)


def plot_intervals(rows: Sequence[SeedInterval], *, title: str, x_label: str, reference: str) -> bytes:
    """One line per row: seeds as small marks, the mean as a large one, the interval as a bar, and a line at 0."""
    figure, axes = _figure(1.5 + 0.62 * len(rows))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e6e9ed", linewidth=0.8)
    axes.axvline(0, color="#4d4d4d", linewidth=1.2, linestyle="--", zorder=1)
    for position, row in enumerate(rows):
        color = _color(row.style)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [position, position], color=color, linewidth=3, solid_capstyle="butt")
        axes.plot(row.values, [position + 0.26] * len(row.values), linestyle="", marker="|", color=color, markersize=9)
        marker = MARKERS[row.style % len(MARKERS)]
        axes.plot(row.mean, position, marker=marker, color=color, markersize=8.5, markeredgecolor="white", zorder=4)
    axes.xaxis.set_major_locator(require("matplotlib.ticker", extra="train").MaxNLocator(6))
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=10.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.text(0, 1.0, reference, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=9.5)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", pad=18)
    axes.set_xlabel(x_label, fontsize=10.5)
    return encode_png(figure)


def plot_ratios(ratios: Sequence[Ratio], *, title: str, x_label: str) -> bytes:
    """One line per label with a mark and a bar per candidate, and a line at 1; logarithmic axis."""
    labels = list(dict.fromkeys(ratio.label for ratio in ratios))
    candidates = list(dict.fromkeys(ratio.candidate for ratio in ratios))
    figure, axes = _figure(1.4 + 0.34 * len(labels))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e6e9ed", linewidth=0.8)
    axes.axvline(1.0, color="#4d4d4d", linewidth=1.2, linestyle="--", zorder=1)
    for style, candidate in enumerate(candidates, start=1):
        own = [ratio for ratio in ratios if ratio.candidate == candidate]
        y = [labels.index(ratio.label) + 0.22 * (style - (len(candidates) + 1) / 2) for ratio in own]
        for ratio, position in zip(own, y, strict=True):
            axes.plot([ratio.low, ratio.high], [position] * 2, color=_color(style), linewidth=2)
        marker = MARKERS[style % len(MARKERS)]
        middles = [ratio.middle for ratio in own]
        axes.plot(middles, y, linestyle="", marker=marker, color=_color(style), markersize=5, label=candidate)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=10.5)
    figure.legend(frameon=False, fontsize=9, ncols=max(1, len(candidates)), loc="outside lower center")
    return encode_png(figure)


def plot_layers(groups: Sequence[LayerPoints], *, title: str, y_label: str, log_y: bool = False) -> bytes:
    """Per layer and group an open mark (before) and a filled one (after), joined; infinite values are left out."""
    figure, axes = _figure(3.9)
    step = 0.7 / max(1, len(groups))
    for index, group in enumerate(groups):
        shift = (index - (len(groups) - 1) / 2) * step
        color = _color(group.style)
        marks: dict[str, Any] = {
            "color": color,
            "marker": MARKERS[group.style % len(MARKERS)],
            "linestyle": "",
            "clip_on": False,
        }
        for layer, (before, after) in enumerate(zip(group.before, group.after, strict=True), start=1):
            if math.isfinite(before) and math.isfinite(after):
                axes.plot([layer + shift] * 2, [before, after], color=color, linewidth=1.4, alpha=0.6)
        x = [layer + shift for layer in range(1, len(group.before) + 1)]
        # The open mark is larger, so that both are visible at the same place.
        before_marks = marks | {"markerfacecolor": "white", "markersize": 9, "label": f"{group.label}: before"}
        axes.plot(x, _finite(group.before), **before_marks)
        axes.plot(x, _finite(group.after), markersize=4.5, label=f"{group.label}: after", **marks)
    if log_y:
        _log_scale(axes)
    else:
        axes.set_ylim(bottom=0)
    layers = max((len(group.before) for group in groups), default=0)
    locator = require("matplotlib.ticker", extra="train").MaxNLocator(12, integer=True, min_n_ticks=1)
    axes.xaxis.set_major_locator(locator)
    axes.set_xlim(0.4, layers + 0.6)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold")
    axes.set_xlabel("attention layer", fontsize=10.5)
    axes.set_ylabel(y_label, fontsize=10.5)
    figure.legend(frameon=False, fontsize=9, ncols=max(1, len(groups)), loc="outside lower center")
    return encode_png(figure)


def _finite(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


def plot_heat_maps(
    maps: Sequence[HeatMap],
    *,
    row_labels: Sequence[str],
    x_label: str,
    value_label: str,
    column_labels: Sequence[float] | None = None,
    limits: tuple[float, float] | None = None,
    log: bool = False,
) -> bytes:
    """The maps side by side with one color scale; cells without a number are crossed out.

    Columns count from 0 unless ``column_labels`` are given. ``limits`` of the scale default to those of the numbers.
    """
    np = require("numpy", extra="train")
    columns = max((1, *(len(row) for one in maps for row in one.values)))
    low, high = heat_limits(maps) if limits is None else limits
    colors = require("matplotlib.colors", extra="train")
    norm = (colors.LogNorm if log else colors.Normalize)(low, high if high > low else low * 1.01 + 1e-12)
    height = 1.5 + 0.24 * max(4, len(row_labels))
    figure = require("matplotlib.figure", extra="train").Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for position, (axis, one) in enumerate(zip(axes, maps, strict=True)):
        grid = np.full((len(row_labels), columns), np.nan)
        for index, row in enumerate(one.values):
            grid[index, : len(row)] = row
            missing = [column for column, value in enumerate(row) if not math.isfinite(value)]
            axis.plot(missing, [index] * len(missing), "x", color="#8a94a0", markersize=4)
        grid[~np.isfinite(grid)] = np.nan
        image = axis.imshow(grid, norm=norm, cmap="viridis", aspect="auto", interpolation="nearest")
        axis.set_facecolor("#f2f4f6")
        axis.set_title(one.title, loc="left", fontsize=10.5, fontweight="bold")
        axis.set_yticks(range(len(row_labels)), row_labels if position == 0 else [""] * len(row_labels), fontsize=7.5)
        step = max(1, math.ceil(columns * len(maps) / 18))
        labels = range(columns) if column_labels is None else column_labels
        axis.set_xticks(range(0, columns, step), [f"{label:g}" for label in labels[::step]])
        axis.tick_params(axis="x", labelsize=8)
        axis.set_xlabel(x_label, fontsize=10)
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=list(axes), shrink=0.9)
    bar.set_label(value_label, fontsize=10)
    bar.ax.tick_params(labelsize=8)
    if log:
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
        bar.ax.tick_params(which="minor", labelsize=8)
    return encode_png(figure)


def heat_limits(maps: Sequence[HeatMap]) -> tuple[float, float]:
    """The smallest and the largest finite number of ``maps``; (1, 1) if there is none."""
    numbers = [value for one in maps for row in one.values for value in row if math.isfinite(value)]
    return (min(numbers), max(numbers)) if numbers else (1.0, 1.0)


def plot_profiles(profiles: Sequence[Profile], *, title: str, x_label: str, y_label: str) -> bytes:
    """The curves on a logarithmic axis, colored by depth; numbers that are not positive end a curve."""
    figure, axes = _figure(3.9)
    map_ = require("matplotlib", extra="train").colormaps["viridis"]
    for profile in profiles:
        values = [value if value > 0 else math.nan for value in profile.values]
        color = map_(0.92 * profile.depth)
        marker = "o" if len(values) == 1 else None
        axes.plot(range(1, len(values) + 1), values, color=color, linewidth=1.4, marker=marker, label=profile.label)
    _log_scale(axes)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=10.5)
    axes.set_ylabel(y_label, fontsize=10.5)
    if len(profiles) <= 12:
        axes.legend(frameon=False, fontsize=7.5, ncols=2)
    return encode_png(figure)
