"""Statistics are held against those measured on 60 images of the original generator, each difficulty."""

import random
from math import sqrt

import numpy as np
import pytest

from preconditioned_attention.lab.data.pathfinder_drawing import Drawing, draw_pathfinder

IMAGES = 60


def drawings(contour_length: int) -> list[Drawing]:
    streams = (random.Random(f"test {contour_length} {number}") for number in range(IMAGES))
    return [draw_pathfinder(stream.random, contour_length=contour_length) for stream in streams]


def agree(values: np.ndarray, expected: float, rounding: float) -> bool:
    """Whether a mean is that of as many other images, to four standard errors of the difference of two means and the
    rounding of the other."""
    return abs(values.mean() - expected) < 4 * sqrt(2) * values.std() / sqrt(len(values)) + rounding


@pytest.mark.parametrize(("contour_length", "attempts", "zeros"), [(6, 4.1, 0.65), (9, 8.9, 0.62), (14, 52.0, 0.55)])
def test_what_was_measured_of_the_original(contour_length: int, attempts: float, zeros: float) -> None:
    drawn = drawings(contour_length)
    images = np.stack([drawing.image for drawing in drawn])
    assert (images.dtype, images.shape) == (np.uint8, (IMAGES, 32, 32))
    assert agree(np.array([drawing.attempts for drawing in drawn]), attempts, 0.5 if attempts > 10 else 0.05)
    assert agree((images == 0).mean(axis=(1, 2)), zeros, 0.005)
    assert abs(np.mean([drawing.label for drawing in drawn]) - 0.5) < 4 * 0.5 / sqrt(IMAGES)
    assert (images.min(axis=(1, 2)) == 0).all()
    assert (images.max(axis=(1, 2)) == 255).all()
    if contour_length == 14:  # the others were not measured so closely
        assert agree(images.mean(axis=(1, 2)), 28, 0.5)
        assert agree(np.array([drawing.distractors for drawing in drawn]), 4.7, 0.05)
        assert agree(np.array([drawing.brightest for drawing in drawn]), 1.14, 0.005)
