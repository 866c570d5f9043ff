import io
import math

import matplotlib.image
import numpy as np
import pytest

from preconditioned_attention.reporting import (
    Curve,
    LayerPoints,
    Ratio,
    SeedInterval,
    plot_bands,
    plot_intervals,
    plot_layers,
    plot_ratios,
)
from preconditioned_attention.reporting.plots import COLOURS, DOTS_PER_INCH, WIDTH_INCHES

CURVES = [
    Curve(label="plain", style=0, x=[1, 2, 3], y_per_seed=[[3.0, 2.0, 1.0], [3.2, 2.2, 1.5]]),
    Curve(label="other", style=1, x=[1, 2, 3], y_per_seed=[[3.0, 1.0, 0.5]]),
]


def bands(curves=CURVES, **options) -> bytes:
    return plot_bands(curves, **{"title": "t", "x_label": "x", "y_label": "y"} | options)


def intervals(*rows: SeedInterval) -> bytes:
    return plot_intervals(rows, title="t", x_label="x", reference="plain")


def layers(*groups: LayerPoints, **options) -> bytes:
    return plot_layers(groups, title="t", y_label="kappa", **options)


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    image = matplotlib.image.imread(io.BytesIO(png), format="png")
    assert image.shape[1] == pytest.approx(WIDTH_INCHES * DOTS_PER_INCH, abs=1)
    return image[..., :3]


def has_colour(png: bytes, colour: str) -> bool:
    wanted = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return bool((np.abs(pixels(png) - wanted).max(axis=-1) < 0.01).any())


@pytest.mark.parametrize("log_y", [False, True])
def test_bands_show_each_curve_in_its_colour(log_y):
    png = bands(log_y=log_y)
    assert has_colour(png, COLOURS[0])
    assert has_colour(png, COLOURS[1])
    assert not has_colour(png, COLOURS[2])


def test_a_plot_shows_its_numbers():
    moved = [CURVES[0], Curve(label="other", style=1, x=[1, 2, 3], y_per_seed=[[3.0, 1.0, 0.9]])]
    assert bands() == bands()
    assert bands() != bands(moved)


def test_intervals_without_an_interval_show_the_seeds():
    row = SeedInterval(label="other", style=2, values=[0.1], mean=0.1, low=None, high=None)
    assert has_colour(intervals(row), COLOURS[2])


def test_intervals_of_several_arms():
    rows = [
        SeedInterval(label=f"arm {style}", style=style, values=[0.1, -0.2], mean=-0.05, low=-2.0, high=1.9)
        for style in (1, 2, 3)
    ]
    assert all(has_colour(intervals(*rows), COLOURS[style]) for style in (1, 2, 3))


def test_layers_leave_out_what_is_infinite():
    finite = LayerPoints(label="plain", style=0, before=[10.0, 20.0], after=[5.0, 4.0])
    infinite = LayerPoints(label="other", style=1, before=[10.0, math.inf], after=[math.nan, math.inf])
    png = layers(finite, infinite, log_y=True)
    assert has_colour(png, COLOURS[0])
    assert has_colour(png, COLOURS[1])


def test_layers_with_nothing_finite_still_give_a_picture():
    pixels(layers(LayerPoints(label="plain", style=0, before=[math.inf], after=[math.nan]), log_y=True))


def test_many_layers_and_styles_beyond_the_colours():
    groups = [LayerPoints(label=str(style), style=style, before=[2.0] * 48, after=[1.0] * 48) for style in range(9)]
    pixels(layers(*groups))


def test_global_state_of_matplotlib_is_untouched():
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    bands()
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


def test_ratios_share_a_line_per_label() -> None:
    ratios = [
        Ratio(label=label, candidate=candidate, low=0.9, middle=1.0, high=1.2)
        for label in ("one", "two")
        for candidate in ("a", "b")
    ]
    png = plot_ratios(ratios, title="t", x_label="x")
    assert has_colour(png, COLOURS[1])
    assert has_colour(png, COLOURS[2])
    assert pixels(png).shape[0] > pixels(plot_ratios(ratios[:2], title="t", x_label="x")).shape[0]
