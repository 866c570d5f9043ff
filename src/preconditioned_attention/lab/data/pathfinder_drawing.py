"""Drawing of one Pathfinder image of 32 x 32 pixels: two dashed paths, distractors, and a disc at two ends.

Both ends belong to the same path (label 1) or to different ones (label 0). Coordinates are (row, column), angles in
radians from the column axis towards growing rows. The algorithm and its constants are those of the generator that
Long Range Arena used; dashes and masks are rendered at twice the size and reduced, as there. Random numbers come from
another generator: the distribution is the same, the images are not.

Source: D. Linsley et al., Learning long-range spatial dependencies with horizontal gated recurrent units, NeurIPS 2018,
and its code (before 2026); Y. Tay et al., Long Range Arena, ICLR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ..._extras import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Draw = Callable[[], float]
Point = tuple[int, int]

SIZE = 32
LENGTH = 2  # of a dash
MARGIN = 1  # between dashes
SCALE = 2  # rendered so much larger, then reduced
HALF = LENGTH + 1 + MARGIN  # a stamp reaches so far from where its dash starts
STEP = LENGTH + MARGIN
SEED_DISTANCE = 7
MARKER_RADIUS = 1.5
TARGET_CONTRAST, DISTRACTOR_CONTRAST = 1.5, 2.0
TRIES = 3
DISTRACTOR_ATTEMPTS = 5
OCCUPIED = 0.3
CROSSING = 1.8
LEAST_WEIGHT = 1e-4
LEAST_FREE = 0.01


class Drawing(NamedTuple):
    """An image, uint8 ``(32, 32)``; its label; and counts of the drawing.

    ``attempts``: how often the two paths were begun; ``distractors``: how many found room; ``brightest``: the largest
    value before the image was scaled to 0 to 255.
    """

    image: NDArray[np.uint8]
    label: int
    attempts: int
    distractors: int
    brightest: float


class _Stamp(NamedTuple):
    """A dash from the center in one direction: its brightness, its area, and that area dilated by the margin."""

    line: NDArray[np.float64]
    mask: NDArray[np.float64]
    grown: NDArray[np.float64]


@dataclass
class _Snake:
    """A path that is being drawn; the area of its newest dash is marked when the next one has been placed."""

    origin: Point
    pivot: Point
    orientation: float
    tip: Point
    newest: tuple[_Stamp, Point]
    image: NDArray[np.float64]
    contrast: float


class _Board:
    """The area that is occupied (0 to 1), and the same dilated by the margin."""

    def __init__(self, taken: NDArray[np.float64], grown: NDArray[np.float64]) -> None:
        self.taken = taken
        self.grown = grown

    def copy(self) -> _Board:
        return _Board(self.taken.copy(), self.grown.copy())

    def take(self, newest: tuple[_Stamp, Point]) -> None:
        stamp, place = newest
        _lay(self.taken, stamp.mask, place)
        _lay(self.grown, stamp.grown, place)


def draw_pathfinder(draw: Draw, *, contour_length: int) -> Drawing:
    """One image.

    Args:
        draw: gives random numbers, uniform in [0, 1).
        contour_length: dashes of each of the two paths.
    """
    numpy = require("numpy", extra="vision")
    label = int(draw() * 2)
    attempts, pair = 1, None
    while pair is None:
        board = _Board(*(part.copy() for part in _empty()))
        pair = _draw_pair(draw, board, contour_length)
        attempts += pair is None
    image = numpy.maximum(pair[0].image, pair[1].image)
    distractor_length = contour_length // 3
    placed = 0
    for _ in range(20 // distractor_length):
        for _ in range(DISTRACTOR_ATTEMPTS):
            drawn = _draw_distractor(draw, board, distractor_length)
            if drawn is not None:
                snake, board = drawn
                image = numpy.maximum(image, snake.image)
                placed += 1
                break
    first = int(draw() * 2)
    ends = (pair[first].origin, pair[first if label else 1 - first].tip)
    for end in ends:
        image = numpy.maximum(image, _disc(end))
    low, high = image.min(), image.max()
    scaled = ((image - low) * (255 / (high - low)) + 0.5).astype(numpy.uint8)
    return Drawing(scaled, label, attempts, placed, float(high))


def _draw_pair(draw: Draw, board: _Board, contour_length: int) -> tuple[_Snake, _Snake] | None:
    """The two paths, dash by dash in turn; None if one of them cannot be continued."""
    first = _first_seed(draw)
    second = None if first is None else _second_seed(draw, first.origin)
    if first is None or second is None:
        return None
    for _ in range(contour_length - 1):
        if not _extend(draw, board, first) or not _extend(draw, board, second):
            return None
    board.take(second.newest)  # as in the original, the last dash of the first path is not marked
    return first, second


def _draw_distractor(draw: Draw, board: _Board, length: int) -> tuple[_Snake, _Board] | None:
    """A short path somewhere, and the board with it; None if it finds no room."""
    snake = _free_seed(draw, board)
    if snake is None:
        return None
    board = board.copy()
    for _ in range(length - 1):
        if not _extend(draw, board, snake):
            return None
    board.take(snake.newest)
    return snake, board


def _first_seed(draw: Draw) -> _Snake | None:
    """A first dash near the center of the image."""
    for _ in range(TRIES):
        degrees = int(draw() * 360) - 180
        places = _central_places(degrees)
        if not places:
            return None
        snake = _seed(places[int(draw() * len(places))], degrees, TARGET_CONTRAST)
        if snake is not None:
            return snake
    return None


def _second_seed(draw: Draw, origin: Point) -> _Snake | None:
    """A first dash at the seed distance from the other path's."""
    for _ in range(TRIES):
        degrees = int(draw() * 360) - 180
        angle = math.radians(int(draw() * 360))
        row = round(origin[0] + SEED_DISTANCE * math.sin(angle))
        column = round(origin[1] + SEED_DISTANCE * math.cos(angle))
        snake = _seed((row, column), degrees, TARGET_CONTRAST)
        if snake is not None:
            return snake
    return None


def _free_seed(draw: Draw, board: _Board) -> _Snake | None:
    """A first dash where there is room."""
    numpy = require("numpy", extra="vision")
    occupied = board.taken > OCCUPIED
    if 1 - occupied.mean() < LEAST_FREE:
        return None
    for _ in range(TRIES):
        degrees = int(draw() * 360) - 180
        free = numpy.argwhere(~_shifted_any(occupied, _footprint(degrees)))
        if not len(free):
            return None
        row, column = free[int(draw() * len(free))].tolist()
        snake = _seed((row, column), degrees, DISTRACTOR_CONTRAST)
        if snake is not None:
            return snake
    return None


def _seed(tail: Point, degrees: int, contrast: float) -> _Snake | None:
    """A dash from ``tail``; None if its head or the pivot behind it lies outside of the image."""
    numpy = require("numpy", extra="vision")
    orientation = math.radians(degrees)
    head = _translate(tail, orientation, LENGTH)
    pivot = _translate(head, _flip(orientation), LENGTH + MARGIN)
    if not (_inside(head) and _inside(pivot)):
        return None
    stamp = _stamp(orientation)
    image = numpy.zeros((SIZE, SIZE))
    _lay(image, stamp.line * contrast, tail)
    return _Snake(tail, pivot, orientation, tail, (stamp, tail), image, contrast)


def _extend(draw: Draw, board: _Board, snake: _Snake) -> bool:
    """One more dash, more likely straight on; False if there is no room for it."""
    numpy = require("numpy", extra="vision")
    pivot = _translate(snake.pivot, snake.orientation, LENGTH + 2 * MARGIN)
    offsets, angles = _circle()
    rows, columns = offsets[:, 0] + pivot[0], offsets[:, 1] + pivot[1]
    inside = (rows >= 0) & (rows < SIZE) & (columns >= 0) & (columns < SIZE)
    room = 1 - board.grown[rows.clip(0, SIZE - 1), columns.clip(0, SIZE - 1)]
    weights = _straightness(snake.orientation) * room * inside
    cumulative = numpy.cumsum(weights)
    if cumulative[-1] < LEAST_WEIGHT:
        return False
    for _ in range(TRIES):
        chosen = min(int(numpy.searchsorted(cumulative, draw() * cumulative[-1], side="right")), len(angles) - 1)
        tip, angle = (int(rows[chosen]), int(columns[chosen])), float(angles[chosen])
        stamp = _stamp(_flip(angle))
        if not _crosses(board.taken, stamp.mask, tip):
            _lay(snake.image, stamp.line * snake.contrast, tip)
            board.take(snake.newest)
            snake.pivot, snake.orientation, snake.tip, snake.newest = pivot, angle, tip, (stamp, tip)
            return True
    return False


def _translate(point: Point, orientation: float, distance: float) -> Point:
    return (
        math.ceil(point[0] + distance * math.sin(orientation)),
        math.ceil(point[1] + distance * math.cos(orientation)),
    )


def _flip(orientation: float) -> float:
    return orientation + math.pi if orientation < 0 else orientation - math.pi


def _inside(point: Point) -> bool:
    return 0 <= point[0] < SIZE and 0 <= point[1] < SIZE


def _window(place: Point, half: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The window of an image that a patch around ``place`` covers, and the part of the patch inside the image."""
    starts = [max(0, center - half) for center in place]
    ends = [min(size, center + half + 1) for center in place]
    rows, columns = (slice(start, end) for start, end in zip(starts, ends, strict=True))
    own = [
        slice(start - center + half, end - center + half)
        for start, end, center in zip(starts, ends, place, strict=True)
    ]
    return (rows, columns), (own[0], own[1])


def _lay(image: NDArray[np.float64], patch: NDArray[np.float64], place: Point) -> None:
    """Draw a patch into an image; of two values the larger one remains."""
    numpy = require("numpy", extra="vision")
    there, own = _window(place, len(patch) // 2, len(image))
    view = image[there]
    numpy.maximum(view, patch[own], out=view)


def _crosses(taken: NDArray[np.float64], mask: NDArray[np.float64], place: Point) -> bool:
    there, own = _window(place, len(mask) // 2, SIZE)
    return bool((taken[there] + mask[own]).max() >= CROSSING)


@cache
def _empty() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A board on which nothing but the border is occupied."""
    numpy = require("numpy", extra="vision")
    taken = numpy.pad(numpy.zeros((SIZE - 2, SIZE - 2)), 1, constant_values=1.0)
    return taken, _dilate(taken, MARGIN)


@cache
def _circle() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The pixels at one step's distance, relative to the pivot, and the direction of each."""
    numpy = require("numpy", extra="vision")
    angles = numpy.radians(numpy.arange(0, 360, 360 / (2 * STEP * math.pi)))
    offsets = numpy.unique(
        numpy.floor(numpy.stack([STEP * numpy.sin(angles), STEP * numpy.cos(angles)], axis=1)).astype(numpy.int64),
        axis=0,
    )
    return offsets, numpy.arctan2(offsets[:, 0], offsets[:, 1])


@cache
def _straightness(orientation: float) -> NDArray[np.float64]:
    """The squared cosine of each direction of :func:`_circle` to ``orientation``; 0 from 90 degrees on."""
    numpy = require("numpy", extra="vision")
    difference = numpy.abs(_circle()[1] - orientation)
    angle = numpy.minimum(numpy.minimum(difference, 2 * math.pi - difference), math.pi / 2)
    return numpy.maximum(numpy.cos(angle), 0.0) ** 2


@cache
def _stamp(orientation: float) -> _Stamp:
    numpy = require("numpy", extra="vision")
    image, drawing = require("PIL.Image", extra="vision"), require("PIL.ImageDraw", extra="vision")
    center = HALF * SCALE
    head = _translate((center, center), orientation, LENGTH * SCALE)
    large = image.new("L", (2 * center + 1, 2 * center + 1))
    drawing.Draw(large).line([(center, center), (head[1], head[0])], fill=255, width=1)
    room = image.fromarray(_dilate(numpy.asarray(large), MARGIN * SCALE))
    line, mask = (
        numpy.asarray(each.resize((2 * HALF + 1, 2 * HALF + 1), image.Resampling.LANCZOS)) / 255
        for each in (large, room)
    )
    return _Stamp(line, mask, _dilate(numpy.pad(mask, MARGIN), MARGIN))


@cache
def _footprint(degrees: int) -> tuple[Point, ...]:
    """The pixels that a dash must not share, relative to one up and one left of its start, as in the original."""
    numpy = require("numpy", extra="vision")
    size, start = 2 * STEP + 1, STEP + 1
    mask = numpy.zeros((size, size))
    _lay(mask, _stamp(math.radians(degrees)).mask, (start, start))
    return tuple((row - STEP, column - STEP) for row, column in numpy.argwhere(mask == 1).tolist())


@cache
def _central_places(degrees: int) -> tuple[Point, ...]:
    """Where a path may begin: nowhere near the border."""
    numpy = require("numpy", extra="vision")
    border = 2 * SEED_DISTANCE
    taken = numpy.pad(numpy.zeros((SIZE - 2 * border,) * 2, dtype=bool), border, constant_values=True)
    return tuple((row, column) for row, column in numpy.argwhere(~_shifted_any(taken, _footprint(degrees))).tolist())


def _shifted_any(taken: NDArray[np.bool_], offsets: tuple[Point, ...]) -> NDArray[np.bool_]:
    """Whether any of the pixels at these offsets from a pixel is occupied; outside of the image none is."""
    numpy = require("numpy", extra="vision")
    padded = numpy.pad(taken, STEP)
    found = numpy.zeros_like(taken)
    for row, column in offsets:
        found |= padded[STEP + row : STEP + row + SIZE, STEP + column : STEP + column + SIZE]
    return found


def _dilate(image: NDArray[Any], radius: int) -> NDArray[Any]:
    """The largest value within a disc around every pixel."""
    numpy, ndimage = require("numpy", extra="vision"), require("scipy.ndimage", extra="vision")
    y, x = numpy.ogrid[-radius : radius + 1, -radius : radius + 1]
    return ndimage.grey_dilation(image, footprint=x**2 + y**2 <= radius**2, mode="constant", cval=0)


def _disc(center: Point) -> NDArray[np.float64]:
    """A disc of brightness 1."""
    numpy, image = require("numpy", extra="vision"), require("PIL.Image", extra="vision")
    y, x = numpy.ogrid[: SIZE * SCALE, : SIZE * SCALE]
    inside = (y - center[0] * SCALE) ** 2 + (x - center[1] * SCALE) ** 2 <= (MARKER_RADIUS * SCALE) ** 2
    large = image.fromarray((inside * 255).astype(numpy.uint8))
    return numpy.asarray(large.resize((SIZE, SIZE), image.Resampling.LANCZOS)) / 255
