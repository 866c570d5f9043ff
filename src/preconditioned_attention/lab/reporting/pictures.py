"""Pictures of a classifier: the confusion matrix, and images with their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..._extras import require
from .plots import WIDTH_INCHES, encode_png

COLUMNS = 4
RIGHT_COLOR = "#0072b2"
WRONG_COLOR = "#d55e00"
SHORT = 14


def plot_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], *, title: str) -> bytes:
    """A confusion matrix: labels in rows, predictions in columns, shaded by the share of the row."""
    np = require("numpy", extra="train")
    size = len(names)
    values = np.asarray(counts, dtype=float)
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1.0)
    side = max(3.2, min(WIDTH_INCHES, 1.6 + 0.42 * size))
    figure = require("matplotlib.figure", extra="train").Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row in range(size):
        for column in range(size):
            if values[row, column]:
                color = "white" if shares[row, column] > 0.5 else "#1f2933"
                text = f"{values[row, column]:g}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    labels = [_short(name) for name in names]
    upright = max(map(len, labels), default=0) > 3
    axes.set_xticks(range(size), labels, fontsize=8, rotation=90 if upright else 0)
    axes.set_yticks(range(size), labels, fontsize=8)
    axes.set_xlabel("predicted", fontsize=10.5)
    axes.set_ylabel("label", fontsize=10.5)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold")
    return encode_png(figure)


def plot_labeled_images(
    images: Sequence[Any], captions: Sequence[str], wrong: Sequence[str | None], *, title: str
) -> bytes:
    """Images in a grid.

    Args:
        images: arrays of shape ``(H, W, 3)`` with values in [0, 1].
        captions: the text above each.
        wrong: the text below the image if the caption is wrong, or None.
        title: above the grid.
    """
    rows = -(-len(images) // COLUMNS)
    size = (WIDTH_INCHES, 0.5 + 1.75 * rows)
    figure = require("matplotlib.figure", extra="train").Figure(figsize=size, layout="constrained")
    for axes in figure.subplots(rows, COLUMNS, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, caption, correction in zip(figure.axes, images, captions, wrong, strict=False):
        color = RIGHT_COLOR if correction is None else WRONG_COLOR
        axes.imshow(image, interpolation="nearest")
        axes.set_title(_short(caption, 2 * SHORT), fontsize=9, color=color)
        if correction is not None:
            place = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            axes.text(0.5, -0.03, _short(correction, 2 * SHORT), fontsize=9, color=color, **place)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    in_color = any((image != image[..., :1]).any() for image in images)
    return encode_png(figure, all_colors=in_color)


def _short(text: str, length: int = SHORT) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
