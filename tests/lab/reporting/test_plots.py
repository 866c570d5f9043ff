import io
import math

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from preconditioned_attention.lab.reporting import (
    Curve,
    HeatMap,
    LayerPoints,
    Profile,
    Ratio,
    SeedInterval,
    heat_limits,
    plot_bands,
    plot_heat_maps,
    plot_intervals,
    plot_layers,
    plot_profiles,
    plot_ratios,
)
from preconditioned_attention.lab.reporting.plots import COLORS, DOTS_PER_INCH, WIDTH_INCHES, encode_png

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


def has_color(png: bytes, color: str) -> bool:
    wanted = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return bool((np.abs(pixels(png) - wanted).max(axis=-1) < 0.01).any())


@pytest.mark.parametrize("log_y", [False, True])
def test_bands_show_each_curve_in_its_color(log_y):
    png = bands(log_y=log_y)
    assert has_color(png, COLORS[0])
    assert has_color(png, COLORS[1])
    assert not has_color(png, COLORS[2])


def test_a_plot_shows_its_numbers():
    moved = [CURVES[0], Curve(label="other", style=1, x=[1, 2, 3], y_per_seed=[[3.0, 1.0, 0.9]])]
    assert bands() == bands()
    assert bands() != bands(moved)


def test_intervals_without_an_interval_show_the_seeds():
    row = SeedInterval(label="other", style=2, values=[0.1], mean=0.1, low=None, high=None)
    assert has_color(intervals(row), COLORS[2])


def test_intervals_of_several_arms():
    rows = [
        SeedInterval(label=f"arm {style}", style=style, values=[0.1, -0.2], mean=-0.05, low=-2.0, high=1.9)
        for style in (1, 2, 3)
    ]
    assert all(has_color(intervals(*rows), COLORS[style]) for style in (1, 2, 3))


def test_layers_leave_out_what_is_infinite():
    finite = LayerPoints(label="plain", style=0, before=[10.0, 20.0], after=[5.0, 4.0])
    infinite = LayerPoints(label="other", style=1, before=[10.0, math.inf], after=[math.nan, math.inf])
    png = layers(finite, infinite, log_y=True)
    assert has_color(png, COLORS[0])
    assert has_color(png, COLORS[1])


def test_layers_with_nothing_finite_still_give_a_picture():
    pixels(layers(LayerPoints(label="plain", style=0, before=[math.inf], after=[math.nan]), log_y=True))


def test_many_layers_and_styles_beyond_the_colors():
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
    assert has_color(png, COLORS[1])
    assert has_color(png, COLORS[2])
    assert pixels(png).shape[0] > pixels(plot_ratios(ratios[:2], title="t", x_label="x")).shape[0]


def heat(*maps: HeatMap, **options) -> np.ndarray:
    labels = [f"layer {index}" for index in range(len(maps[0].values))]
    given = {"row_labels": labels, "x_label": "head", "value_label": "kappa"} | options
    return pixels(plot_heat_maps(maps, **given))


def filled_at(image: np.ndarray, share: float) -> bool:
    """Whether viridis's color for this share of the scale fills some of the picture."""
    color = np.array(matplotlib.colormaps["viridis"](share)[:3])
    return bool((np.abs(image[..., :3] - color).max(axis=-1) < 0.02).sum() > 3000)


def test_heat_maps_share_a_scale() -> None:
    one, other = HeatMap(title="A", values=[[1.0, 1.0], [1.0]]), HeatMap(title="C A", values=[[10.0, 10.0], [10.0]])
    assert heat_limits([one, other]) == (1.0, 10.0)
    together = heat(one, other)
    assert filled_at(together, 0.0)
    assert filled_at(together, 1.0)
    alone = heat(one, limits=(0.0, 2.0))
    assert filled_at(alone, 0.5)
    assert not filled_at(alone, 0.97)
    assert filled_at(heat(one, limits=(0.1, 10.0), log=True), 0.5)


def test_heat_maps_cross_out_what_is_missing() -> None:
    missing = HeatMap(title="A", values=[[math.nan, math.inf], [math.nan]])
    assert heat_limits([missing]) == (1.0, 1.0)
    assert not np.array_equal(heat(missing), heat(HeatMap(title="A", values=[[], []])))
    assert heat_limits([HeatMap(title="A", values=[[2.0, math.nan], [0.5]])]) == (0.5, 2.0)


def test_profiles_are_told_apart_by_depth_and_end_at_zero() -> None:
    def profiles(*values: float, depth: float = 0.0) -> np.ndarray:
        one = Profile(label="layer", depth=depth, values=values)
        return pixels(plot_profiles([one], title="t", x_label="index", y_label="share"))

    falling = profiles(1.0, 0.1, 0.01)
    assert not np.array_equal(falling, profiles(1.0, 0.1, 0.01, depth=1.0))
    assert not np.array_equal(falling, profiles(1.0, 0.1, 0.0))
    profiles(1.0)
    many = [Profile(label=f"layer {i}", depth=i / 29, values=[1.0, 0.5]) for i in range(30)]
    pixels(plot_profiles(many, title="t", x_label="index", y_label="share"))


def test_a_palette_keeps_the_colors_and_saves_bytes():
    figure = Figure(figsize=(4, 3))
    figure.subplots().imshow(np.random.default_rng(0).random((30, 40, 3)), interpolation="nearest")
    with_palette, whole = encode_png(figure), encode_png(figure, all_colors=True)
    assert len(with_palette) < len(whole)
    images = [matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3] for png in (with_palette, whole)]
    assert images[0].shape == images[1].shape == (450, 600, 3)
    assert np.abs(images[0] - images[1]).max() < 0.15
