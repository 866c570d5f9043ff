"""Generator of digit-scenes: handwritten digits on textured canvases, with exact boxes and masks, in COCO's format.

The digits are those of :mod:`preconditioned_attention.lab.data.digits`, real handwriting; training, validation and test
scenes are made from different ones. Each is enlarged, rotated, colored and drawn on a canvas of noise and stripes, over
the earlier ones; bars of other colors are drawn over them. A mask holds the pixels of a digit that remain visible, a
box is the smallest that holds the mask. A scene's random numbers depend on the seed, its split and its number alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._checks import check_integer
from ..._extras import require
from .digits import load_digits
from .limits import check_disk, check_memory
from .new_folder import check_new, write_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = (1, 10)
DIGIT_SIZE = 8  # pixels of the originals
MOST_DIGITS = 4
SCALES = (0.28, 0.5)  # a digit's side over the canvas's
LARGEST_TURN = math.radians(25)
LEAST_VISIBLE = 0.5  # of the pixels of a digit
LEAST_PIXELS = 20
ATTEMPTS = 20
BYTES_PER_PIXEL = 3 * 8  # of a canvas: three channels in float64
LEAST_BYTES = 1024  # of a scene's file, and its annotations


@dataclass(frozen=True, kw_only=True)
class DigitScenes:
    """Options of a data set of scenes.

    Args:
        count: training scenes.
        held_out: validation scenes, and as many test scenes.
        seed: decides all random numbers.
        classes: 1 (category "digit") or 10 (one category per digit); the images are the same.
        image_size: pixels along a canvas's side.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    count: int = 1200
    held_out: int = 200
    seed: int = 0
    classes: int = 1
    image_size: int = 96

    def __post_init__(self) -> None:
        check_integer("count", self.count, minimum=1)
        check_integer("held_out", self.held_out, minimum=1)
        check_integer("seed", self.seed, minimum=0)
        check_integer("image_size", self.image_size, minimum=32)
        pixels = self.image_size * self.image_size
        check_memory(f"image_size={self.image_size}: one scene", pixels * BYTES_PER_PIXEL)
        if self.classes not in CLASSES:
            raise ValueError(f"classes must be 1 (every digit is a 'digit') or 10; got {self.classes!r}")

    def category(self, label: int) -> int:
        """The category id of a digit: 1, or the digit plus 1."""
        return 1 if self.classes == 1 else label + 1

    def categories(self) -> list[dict[str, Any]]:
        """The categories as COCO writes them."""
        names = ("digit",) if self.classes == 1 else NAMES
        return [{"id": number, "name": name, "supercategory": "digit"} for number, name in enumerate(names, start=1)]


@dataclass(frozen=True)
class Scene:
    """One scene: image, uint8 ``(H, W, 3)``; per digit its visible pixels, bool ``(H, W)``, and its label, 0 to 9."""

    image: NDArray[np.uint8]
    masks: list[NDArray[np.bool_]]
    labels: list[int]


def write_digit_scenes(output: Path, options: DigitScenes) -> None:
    """Write ``output/images/*.png`` and ``output/annotations/instances_{train,val,test}.json``.

    The folder is written in full or not at all. The options are kept in each file's ``info``.

    Raises:
        ValueError: ``output`` exists, or the scenes would need more than the free space of the disk.
        OSError: it cannot be written.
    """
    check_new(output)
    scenes = options.count + 2 * options.held_out
    check_disk(f"count={options.count} and held_out={options.held_out}: the scenes", scenes * LEAST_BYTES, output)
    with write_folder(output) as temporary:
        (temporary / "images").mkdir(parents=True)
        (temporary / "annotations").mkdir()
        for split in SPLITS:
            content = _write_split(temporary / "images", split, options)
            (temporary / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def make_scenes(split: str, options: DigitScenes) -> Iterator[Scene]:
    """The scenes of ``"train"``, ``"val"`` or ``"test"``."""
    numpy = require("numpy", extra="vision")
    number = SPLITS.index(split)
    originals = load_digits()[number]
    images = (originals.tensors[0][:, 0].double().numpy() + 1) / 2
    labels = originals.tensors[1].tolist()
    for index in range(options.count if split == "train" else options.held_out):
        sequence = numpy.random.SeedSequence(options.seed, spawn_key=(number, index))
        yield _make_scene(images, labels, numpy.random.default_rng(sequence), options.image_size)


def _write_split(folder: Path, split: str, options: DigitScenes) -> dict[str, Any]:
    pil = require("PIL.Image", extra="vision")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    size = options.image_size
    for number, scene in enumerate(make_scenes(split, options), start=1):
        name = f"{split}_{number:06d}.png"
        pil.fromarray(scene.image).save(folder / name)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            own = {"id": len(annotations) + 1, "image_id": number, "category_id": options.category(label)}
            annotations.append({**own, **describe_mask(mask), "iscrowd": 0})
    info = {"description": "digit-scenes", "split": split, "options": asdict(options)}
    return {"info": info, "images": images, "annotations": annotations, "categories": options.categories()}


def describe_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Area, box (left, top, width, height) and run-length encoding of a mask that is not empty, as COCO writes them."""
    numpy, codec = require("numpy", extra="vision"), require("pycocotools.mask", extra="vision")
    encoded = codec.encode(numpy.asfortranarray(mask, dtype=numpy.uint8))
    rows, columns = numpy.flatnonzero(mask.any(axis=1)), numpy.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "area": int(mask.sum()),
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
    }


def _make_scene(images: NDArray[Any], labels: list[int], rng: np.random.Generator, size: int) -> Scene:
    canvas = _texture(rng, size)
    masks: list[Any] = []
    inks: list[int] = []  # the pixels of each digit before anything was drawn over it
    chosen: list[int] = []
    for _ in range(int(rng.integers(1, MOST_DIGITS + 1))):
        index = int(rng.integers(len(images)))
        for _ in range(ATTEMPTS):
            alpha = _place(images[index], rng, size)
            ink = alpha > 0.5
            if ink.sum() >= LEAST_PIXELS and _all_visible(masks, inks, ink):
                canvas = _lay(canvas, alpha, rng)
                masks = [mask & ~ink for mask in masks] + [ink]
                inks.append(int(ink.sum()))
                chosen.append(labels[index])
                break
    for _ in range(int(rng.integers(0, 3))):
        alpha = _bar(rng, size)
        if _all_visible(masks, inks, alpha > 0.5):
            canvas = _lay(canvas, alpha, rng)
            masks = [mask & ~(alpha > 0.5) for mask in masks]
    return Scene((canvas * 255).round().astype("uint8"), masks, chosen)


def _all_visible(masks: list[Any], inks: list[int], cover: Any) -> bool:
    """Whether enough of every digit would stay visible below ``cover``."""
    visible = [int((mask & ~cover).sum()) for mask in masks]
    return all(left >= max(LEAST_PIXELS, LEAST_VISIBLE * ink) for left, ink in zip(visible, inks, strict=True))


def _texture(rng: np.random.Generator, size: int) -> Any:
    """A color with smooth noise of one scale and stripes of one direction, ``(size, size, 3)`` in [0, 1]."""
    numpy, ndimage = require("numpy", extra="vision"), require("scipy.ndimage", extra="vision")
    cells = int(rng.choice([2, 4, 8, 16]))
    coarse = rng.normal(scale=0.12, size=(cells, cells, 3))
    noise = numpy.stack([ndimage.zoom(coarse[..., c], size / cells, order=1)[:size, :size] for c in range(3)], axis=-1)
    y, x = numpy.mgrid[:size, :size] / size
    angle, frequency, phase = rng.uniform(0, math.pi), rng.uniform(4, 24), rng.uniform(0, 2 * math.pi)
    stripes = rng.uniform(0, 0.12) * numpy.sin(frequency * (x * math.cos(angle) + y * math.sin(angle)) + phase)
    return (rng.uniform(0.15, 0.85, size=3) + noise + stripes[..., None]).clip(0, 1)


def _place(image: Any, rng: np.random.Generator, size: int) -> Any:
    """A digit enlarged, rotated and moved to a random place: opacity ``(size, size)``, with edges a pixel wide."""
    numpy, ndimage = require("numpy", extra="vision"), require("scipy.ndimage", extra="vision")
    scale = rng.uniform(*SCALES) * size / DIGIT_SIZE
    turn = rng.uniform(-LARGEST_TURN, LARGEST_TURN)
    half = scale * DIGIT_SIZE / 2
    center = rng.uniform(half, size - half, size=2)
    back = numpy.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / scale
    offset = (DIGIT_SIZE - 1) / 2 - back @ center
    smooth = ndimage.affine_transform(image, back, offset=offset, output_shape=(size, size), order=3)
    return ((smooth - 0.4) * scale / 2 + 0.5).clip(0, 1)


def _bar(rng: np.random.Generator, size: int) -> Any:
    """A straight bar across the canvas: opacity ``(size, size)``."""
    numpy = require("numpy", extra="vision")
    y, x = numpy.mgrid[:size, :size]
    angle, width = rng.uniform(0, math.pi), rng.uniform(0.02, 0.06) * size
    middle = rng.uniform(0.1, 0.9, size=2) * size
    distance = numpy.abs((x - middle[0]) * math.cos(angle) + (y - middle[1]) * math.sin(angle))
    return (width / 2 - distance + 0.5).clip(0, 1)


def _lay(canvas: Any, alpha: Any, rng: np.random.Generator) -> Any:
    """Blend a textured layer over ``canvas``, brighter or darker than what it covers."""
    below = float((canvas.mean(axis=-1) * alpha).sum() / alpha.sum())
    layer = _texture(rng, len(canvas)) - 0.5
    brightness = below + 0.45 if below < 0.5 else below - 0.45
    layer = (0.5 * layer + brightness).clip(0, 1)
    return canvas * (1 - alpha[..., None]) + layer * alpha[..., None]
