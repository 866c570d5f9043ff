"""Images with boxes and masks in COCO's format (T.-Y. Lin et al., Microsoft COCO, ECCV 2014).

The usual layout is ``annotations/instances_train2017.json`` beside the folders ``train2017`` and ``val2017``. All
annotations are checked when a split is opened; images are decoded on access.

Left out, with a count in the log: regions marked as crowds (the evaluation ignores detections in them), boxes of less
than a pixel, and, in a training split, images without any other annotation.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..._extras import require

Target = dict[str, Tensor]
Transform = Callable[[Any, Target], tuple[Any, Target]]

LARGEST_OVERHANG = 1.0  # pixels: COCO's own boxes are rounded, and some reach over the border by less

logger = logging.getLogger(__name__)


class CocoInstances(Dataset[tuple[Tensor, Target]]):
    """The images of one annotation file: float32 ``(3, H, W)`` in [0, 1] and their targets.

    A target holds ``boxes``, float32 ``(N, 4)``, corners; ``labels``, int64 ``(N,)``, 1 to the number of categories in
    the order of their ids; ``masks``, uint8 ``(N, H, W)``; ``image_id``, int64, a scalar. Boxes are cut at the border.

    Args:
        annotations: the file ``instances_*.json``.
        images: the folder of the images.
        training: leave out images without annotations.
        transform: called with the image (a tv_tensor, uint8) and its target (tv_tensors) and returns both.

    Attributes:
        api: pycocotools' ``COCO`` with the whole annotation file.
        image_ids: the ids of the images, in the order of this dataset.
        category_ids: the ids of the categories; that of label ``n`` is ``category_ids[n - 1]``.
        left_out: how many regions, boxes and images were left out.

    Raises:
        ValueError: the file is not one of COCO's instances, or holds no image, or an annotation has a
            box outside its image or an unknown category or image; the message names file and id.
        OSError: a file cannot be read; for an image, on access.
    """

    def __init__(
        self, annotations: Path, images: Path, *, training: bool = False, transform: Transform | None = None
    ) -> None:
        self.file, self.folder, self.transform = annotations, images, transform
        self.left_out: Counter[str] = Counter()
        content = _read(annotations)
        self.api = _index(content)
        self.category_ids = sorted(self.api.cats)
        kept = self._check(content["annotations"])
        ids = sorted(self.api.imgs)
        self.image_ids = [one for one in ids if one in kept] if training else ids
        self.left_out["images without annotations"] = len(ids) - len(self.image_ids)
        self._annotations = [kept.get(image_id, []) for image_id in self.image_ids]
        if not self.image_ids:
            raise ValueError(f"{annotations} holds no image{' with annotations' if ids else ''}; a split needs some")
        self._report()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        tv_tensors = require("torchvision.tv_tensors", extra="vision")
        functional = require("torchvision.transforms.v2.functional", extra="vision")
        image = tv_tensors.Image(self._decode(index))
        target = self._target(index, tuple(image.shape[-2:]))
        if self.transform is not None:
            image, target = self.transform(image, target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        return functional.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor), plain

    def select(self, numbers: Sequence[int], *, transform: Transform | None = None) -> CocoInstances:
        """The images with these numbers, from 0, and another transform; the annotations are shared.

        Raises:
            ValueError: none is chosen.
        """
        if not numbers:
            raise ValueError(f"a part of {self.file} must hold at least one of its {len(self)} images; none is left")
        part = copy.copy(self)
        part.image_ids = [self.image_ids[number] for number in numbers]
        part._annotations = [self._annotations[number] for number in numbers]
        part.transform = transform
        return part

    def _decode(self, index: int) -> Tensor:
        image_id = self.image_ids[index]
        path = self.folder / self.api.imgs[image_id]["file_name"]
        pil, functional = (
            require("PIL.Image", extra="vision"),
            require("torchvision.transforms.v2.functional", extra="vision"),
        )
        try:
            with pil.open(path) as opened:
                return functional.pil_to_tensor(opened.convert("RGB"))
        except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for some broken files
            raise OSError(f"image {path} (id {image_id} of {self.file}) cannot be read: {error}") from error

    def _target(self, index: int, size: tuple[int, ...]) -> Target:
        tv_tensors = require("torchvision.tv_tensors", extra="vision")
        info = self.api.imgs[self.image_ids[index]]
        if size != (info["height"], info["width"]):
            raise ValueError(
                f"image {self.folder / info['file_name']} (id {info['id']}) is {size[0]} x {size[1]} pixels (height x "
                f"width); {self.file} says {info['height']} x {info['width']}"
            )
        annotations = self._annotations[index]
        boxes = torch.tensor([_corners(one["bbox"], info) for one in annotations], dtype=torch.float32).view(-1, 4)
        masks = [torch.from_numpy(self.api.annToMask(one)) for one in annotations]
        labels = [self.category_ids.index(one["category_id"]) + 1 for one in annotations]
        return {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "masks": tv_tensors.Mask(torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.uint8)),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "image_id": torch.tensor(info["id"], dtype=torch.int64),
        }

    def _check(self, annotations: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
        """The annotations to train on, by image, after all were checked."""
        kept: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for one in annotations:
            place = f"annotation {one.get('id')} in {self.file}"
            missing = [key for key in ("image_id", "category_id", "bbox", "segmentation") if key not in one]
            if missing:
                raise ValueError(f"{place} lacks {', '.join(missing)}")
            if one["category_id"] not in self.api.cats:
                raise ValueError(f"{place} has category {one['category_id']!r}; its categories are {self.category_ids}")
            if one["image_id"] not in self.api.imgs:
                raise ValueError(f"{place} belongs to image {one['image_id']!r}, which the file does not list")
            left, top, right, bottom = _corners(one["bbox"], self.api.imgs[one["image_id"]], place=place)
            if one.get("iscrowd", 0):
                self.left_out["crowd regions"] += 1
            elif right - left < 1 or bottom - top < 1 or one.get("area", 1) <= 0:
                self.left_out["boxes of less than a pixel"] += 1
            else:
                kept[one["image_id"]].append(one)
        return dict(kept)

    def _report(self) -> None:
        counts = [f"{count} {what}" for what, count in self.left_out.items() if count]
        if counts:
            logger.warning("%s: left out %s of %d images", self.file, ", ".join(counts), len(self.api.imgs))


def _corners(box: list[float], image: dict[str, Any], *, place: str | None = None) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, cut at the border; with ``place``, a box outside the image is an error."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    overhang = max(-left, -top, right - image["width"], bottom - image["height"])
    if place is not None and not (overhang <= LARGEST_OVERHANG and width >= 0 and height >= 0):
        raise ValueError(
            f"{place} has the box {box} (left, top, width, height), which lies outside its image {image['id']} of "
            f"{image['width']} x {image['height']} pixels (width x height)"
        )
    return max(left, 0.0), max(top, 0.0), min(right, float(image["width"])), min(bottom, float(image["height"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise OSError(f"annotation file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"annotation file {path} is not JSON: {error}") from error
    missing = [
        key for key in ("images", "annotations", "categories") if not isinstance(content, dict) or key not in content
    ]
    if missing:
        raise ValueError(f"annotation file {path} lacks {', '.join(missing)}; it is not one of COCO's instances_*.json")
    return content


def _index(content: dict[str, Any]) -> Any:
    """pycocotools' index of the content, without what it prints."""
    api = require("pycocotools.coco", extra="vision").COCO()
    api.dataset = content
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        api.createIndex()
    return api
