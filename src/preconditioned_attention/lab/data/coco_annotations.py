"""The annotation files of COCO's format, read and checked in full before pycocotools sees them.

pycocotools takes them as they are: of two entries with one id it keeps the last, a polygon of two points becomes a
box, and run lengths that do not fit their image, NaN or numbers of 1e30 make its C code read and write outside of its
arrays.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .image_files import check_regular, one_line

LARGEST_OVERHANG = 1.0  # pixels: COCO's own boxes are rounded, and some reach over the border by less
LARGEST_ID = 2**63 - 1  # of an int64
SECTIONS = ("images", "annotations", "categories")
KEYS = ("image_id", "category_id", "bbox", "segmentation", "area", "iscrowd")
LEAST_COORDINATES = 6  # of a polygon: three points

Entry = dict[str, Any]


def read_annotations(path: Path) -> Entry:
    """The content of a file ``instances_*.json``, checked.

    Raises:
        ValueError: the file is not JSON, or not of this format; a number is not finite; an id is not an integer, or not
            the only one; an annotation has a box or a polygon outside its image, run lengths that do not fit it, or an
            unknown category or image. The message names file and id.
        OSError: the file cannot be read.
    """
    content = _load(path)
    missing = [key for key in SECTIONS if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"annotation file {path} lacks {', '.join(missing)}; it is not one of COCO's instances_*.json")
    for section in SECTIONS:
        if not isinstance(content[section], list):
            raise ValueError(f"annotation file {path}: {section} must be a list; got {content[section]!r:.60}")
    categories = _by_id("category", content["categories"], path)
    images = _by_id("image", content["images"], path)
    for image in content["images"]:
        _check_image(image, f"image {image['id']} in {path}")
    for one in _by_id("annotation", content["annotations"], path).values():
        _check_annotation(one, images, categories, f"annotation {one['id']} in {path}")
    return content


def corners(box: Sequence[float], image: Entry) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box (left, top, width, height), cut at the border of its image."""
    left, top, width, height = box
    right, bottom = min(left + width, float(image["width"])), min(top + height, float(image["height"]))
    return max(left, 0.0), max(top, 0.0), right, bottom


def _load(path: Path) -> Any:
    try:
        check_regular(path)
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f"annotation file {path} cannot be read: {error.strerror or one_line(error)}") from error
    try:
        return json.loads(content, object_pairs_hook=_without_repetition, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"annotation file {path} is not JSON: {one_line(error)}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> Entry:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object holds the key {twice!r} twice")
    return entry


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which JSON does not have")


def _by_id(kind: str, entries: Iterable[Any], path: Path) -> dict[int, Entry]:
    """The entries by id, each of which is an integer and the only one."""
    found: dict[int, Entry] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            raise ValueError(
                f"{kind} number {number} (from 0) in {path} must be an object with an id; got {entry!r:.60}"
            )
        identity = entry["id"]
        if not _is_integer(identity) or abs(identity) > LARGEST_ID:
            raise ValueError(f"{kind} {identity!r:.60} in {path}: the id must be an integer of 64 bits")
        if identity in found:
            raise ValueError(f"{kind} {identity} in {path} comes twice; every id must be the only one of its kind")
        found[identity] = entry
    return found


def _check_image(image: Entry, place: str) -> None:
    _check_keys(image, ("file_name", "width", "height"), place)
    name = image["file_name"]
    if not isinstance(name, str) or not name or not _is_path(name):
        raise ValueError(f"{place}: file_name must be the name of a file; got {name!r:.60}")
    for key in ("width", "height"):
        if not _is_integer(image[key]) or image[key] < 1:
            raise ValueError(
                f"{place}: {key} must be a number of pixels, an integer of at least 1; got {image[key]!r:.60}"
            )


def _check_annotation(one: Entry, images: Mapping[int, Entry], categories: Collection[int], place: str) -> None:
    _check_keys(one, KEYS, place)
    if not _is_integer(one["category_id"]) or one["category_id"] not in categories:
        known = sorted(categories)
        raise ValueError(f"{place} has category {one['category_id']!r:.60}; its categories are {known}")
    if not _is_integer(one["image_id"]) or one["image_id"] not in images:
        raise ValueError(f"{place} belongs to image {one['image_id']!r:.60}, which the file does not list")
    if not _is_integer(one["iscrowd"]) or one["iscrowd"] not in (0, 1):
        raise ValueError(f"{place}: iscrowd must be 0 or 1; got {one['iscrowd']!r:.60}")
    if not _are_finite([one["area"]]) or one["area"] < 0:
        raise ValueError(f"{place}: area must be a number of pixels, at least 0; got {one['area']!r:.60}")
    image = images[one["image_id"]]
    _check_box(one["bbox"], image, place)
    _check_segmentation(one["segmentation"], image, place)


def _check_keys(entry: Entry, keys: Sequence[str], place: str) -> None:
    missing = [key for key in keys if key not in entry]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}")


def _check_box(box: Any, image: Entry, place: str) -> None:
    if not isinstance(box, list) or len(box) != 4 or not _are_finite(box):
        raise ValueError(f"{place}: bbox must be four finite numbers (left, top, width, height); got {box!r:.80}")
    left, top, width, height = box
    overhang = max(-left, -top, left + width - image["width"], top + height - image["height"])
    if overhang > LARGEST_OVERHANG or width < 0 or height < 0:
        raise ValueError(
            f"{place} has the box {box} (left, top, width, height), which lies outside its image {_sized(image)}"
        )


def _check_segmentation(segmentation: Any, image: Entry, place: str) -> None:
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, image, place)
    elif not isinstance(segmentation, list) or not segmentation:
        raise ValueError(
            f"{place}: segmentation must be a list of polygons, or run lengths (size, counts); got {segmentation!r:.60}"
        )
    else:
        for polygon in segmentation:
            _check_polygon(polygon, image, place)


def _check_polygon(polygon: Any, image: Entry, place: str) -> None:
    if not isinstance(polygon, list) or not _are_finite(polygon):
        raise ValueError(f"{place}: a polygon must be a list of finite numbers (x, y, x, y, ...); got {polygon!r:.80}")
    if len(polygon) < LEAST_COORDINATES or len(polygon) % 2:
        raise ValueError(
            f"{place}: a polygon must have two coordinates for each of at least three points; got {len(polygon)} "
            f"coordinates, {polygon!r:.80}"
        )
    x, y = polygon[::2], polygon[1::2]
    if max(-min(x), -min(y), max(x) - image["width"], max(y) - image["height"]) > LARGEST_OVERHANG:
        raise ValueError(
            f"{place} has a polygon from x {min(x)} to {max(x)} and y {min(y)} to {max(y)}, which lies outside its "
            f"image {_sized(image)}"
        )


def _check_run_lengths(encoded: Entry, image: Entry, place: str) -> None:
    _check_keys(encoded, ("size", "counts"), f"{place}: segmentation")
    size = [image["height"], image["width"]]
    if encoded["size"] != size or not all(map(_is_integer, encoded["size"])):
        raise ValueError(
            f"{place}: the run lengths are of size {encoded['size']!r:.60} (height, width); its image {image['id']} "
            f"has {size}"
        )
    counts = encoded["counts"]
    try:
        runs = _decode(counts) if isinstance(counts, str) else counts
    except ValueError as error:
        raise ValueError(f"{place}: counts {counts!r:.60} are no compressed run lengths: {error}") from error
    if not isinstance(runs, list) or not all(map(_is_integer, runs)) or min(runs, default=0) < 0:
        raise ValueError(
            f"{place}: counts must be run lengths, integers of at least 0, or a string; got {counts!r:.60}"
        )
    if sum(runs) != size[0] * size[1]:
        raise ValueError(
            f"{place}: the run lengths cover {sum(runs)} pixels; its image {_sized(image)} has {size[0] * size[1]}"
        )


def _decode(text: str) -> list[int]:
    """The run lengths of COCO's compressed form: five bits a character, from the fourth run on differences.

    Raises:
        ValueError: the string has other characters, or ends within a number.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"{character!r} is not one of their characters")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("they end within a number")
    return runs


def _sized(image: Entry) -> str:
    return f"{image['id']} of {image['width']} x {image['height']} pixels (width x height)"


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_finite(values: list[Any]) -> bool:
    """Whether all are numbers and finite; integers that no float can hold are not."""
    try:
        return {*map(type, values)} <= {int, float} and math.isfinite(math.fsum(values))
    except (OverflowError, ValueError):  # ValueError: infinities of both signs
        return False


def _is_path(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
