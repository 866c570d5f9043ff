"""Images with boxes and masks in COCO's format (T.-Y. Lin et al., Microsoft COCO, ECCV 2014).

The usual layout is ``annotations/instances_train2017.json`` beside the folders ``train2017`` and ``val2017``. All
annotations are checked when a split is opened; images are decoded on access.

Left out, with a count in the log: regions marked as crowds (the evaluation ignores detections in them), boxes of less
than a pixel, and, in a training split, images without any other annotation.
"""

from __future__ import annotations

import contextlib
import copy
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
from .coco_annotations import corners, read_annotations
from .image_files import one_line, read_stored

Target = dict[str, Tensor]
Transform = Callable[[Any, Target], tuple[Any, Target]]

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
        ValueError: the file holds no image, or something that :func:`read_annotations` rejects; the message names file
            and id. An image has another size than its file says, on access.
        OSError: a file cannot be read; for an image, on access.
    """

    def __init__(
        self, annotations: Path, images: Path, *, training: bool = False, transform: Transform | None = None
    ) -> None:
        self.file, self.folder, self.transform = annotations, images, transform
        self.left_out: Counter[str] = Counter()
        content = read_annotations(annotations)
        self.api = _index(content)
        self.category_ids = sorted(self.api.cats)
        kept = self._keep(content["annotations"])
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
        info = self.api.imgs[image_id]
        path = self.folder / info["file_name"]
        place = f"image {path} (id {image_id} of {self.file})"
        try:
            image, turn = read_stored(path)
        except OSError as error:
            raise OSError(f"{place} cannot be read: {one_line(error)}") from error
        if turn is not None:
            image = _as_annotated(image, image.transpose(turn), (info["width"], info["height"]), place)
        return require("torchvision.transforms.v2.functional", extra="vision").pil_to_tensor(image)

    def _target(self, index: int, size: tuple[int, ...]) -> Target:
        tv_tensors = require("torchvision.tv_tensors", extra="vision")
        info = self.api.imgs[self.image_ids[index]]
        if size != (info["height"], info["width"]):
            raise ValueError(
                f"image {self.folder / info['file_name']} (id {info['id']}) is {size[0]} x {size[1]} pixels (height x "
                f"width); {self.file} says {info['height']} x {info['width']}"
            )
        annotations = self._annotations[index]
        boxes = torch.tensor([corners(one["bbox"], info) for one in annotations], dtype=torch.float32).view(-1, 4)
        masks = [torch.from_numpy(self.api.annToMask(one)) for one in annotations]
        labels = [self.category_ids.index(one["category_id"]) + 1 for one in annotations]
        return {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "masks": tv_tensors.Mask(torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.uint8)),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "image_id": torch.tensor(info["id"], dtype=torch.int64),
        }

    def _keep(self, annotations: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
        """The annotations to train on, by image."""
        kept: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for one in annotations:
            left, top, right, bottom = corners(one["bbox"], self.api.imgs[one["image_id"]])
            if one["iscrowd"]:
                self.left_out["crowd regions"] += 1
            elif right - left < 1 or bottom - top < 1 or one["area"] == 0:
                self.left_out["boxes of less than a pixel"] += 1
            else:
                kept[one["image_id"]].append(one)
        return dict(kept)

    def _report(self) -> None:
        counts = [f"{count} {what}" for what, count in self.left_out.items() if count]
        if counts:
            logger.warning("%s: left out %s of %d images", self.file, ", ".join(counts), len(self.api.imgs))


def _as_annotated(stored: Any, upright: Any, size: tuple[int, int], place: str) -> Any:
    """An image with an EXIF orientation as its annotations mean it: as it is stored, or upright.

    Raises:
        ValueError: both have the size that the annotation file gives, so that it does not tell.
    """
    if stored.size == upright.size == size:
        raise ValueError(
            f"{place} has an EXIF orientation, and its size does not tell whether the annotations are of the stored or "
            "of the upright image; turn its pixels or remove the orientation"
        )
    return upright if upright.size == size else stored


def _index(content: dict[str, Any]) -> Any:
    """pycocotools' index of the content, without what it prints."""
    if any(one["id"] == 0 for one in content["annotations"]):  # the evaluation takes a match with id 0 for none
        for number, one in enumerate(content["annotations"], start=1):
            one["id"] = number
    api = require("pycocotools.coco", extra="vision").COCO()
    api.dataset = content
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        api.createIndex()
    return api
