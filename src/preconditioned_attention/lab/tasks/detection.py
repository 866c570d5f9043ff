"""Object detection and instance segmentation: Mask R-CNN on COCO, and on digit-scenes in the same format."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..._checks import check_integer
from ..._extras import require
from ..data.coco import CocoInstances
from ..data.digit_scenes import DigitScenes, write_digit_scenes
from ..data.limits import check_memory
from ..models.mask_rcnn import BYTES_PER_PIXEL, MaskRCNNConfig, make_mask_rcnn
from ..models.weights_size import build_on_meta
from ..reporting import Picture
from .detection_metrics import Detections, average_precision, encode_detections
from .detection_pictures import draw_scenes
from .task import Splits, Task

Images = list[Tensor]
Targets = list[dict[str, Tensor]]

SCENES_ROOT = Path("runs/data")
PICTURED = 6

logger = logging.getLogger(__name__)


def collate_examples(examples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Images, Targets]:
    """Images of different sizes and their targets, in two lists."""
    return [image for image, _ in examples], [target for _, target in examples]


class InstanceSegmentation(Task):
    """Base of the detection tasks: model, loss, average precision and pictures. Subclasses define ``open_splits``."""

    metric: ClassVar[str] = "box_AP"
    higher_is_better: ClassVar[bool] = True

    model: dict[str, Any]

    @property
    def pretrained(self) -> bool:
        """Whether the backbone starts from timm's pretrained weights."""
        return bool(self.model.get("pretrained", False))

    @property
    def classes(self) -> int:
        """The number of categories."""
        raise NotImplementedError

    def open_splits(self) -> Splits:
        """Splits of :class:`preconditioned_attention.lab.data.coco.CocoInstances`."""
        raise NotImplementedError

    @cached_property
    def _splits(self) -> Splits:
        return self.open_splits()

    def datasets(self) -> Splits:
        """The splits; annotation files are large, so they are read once.

        Raises:
            ValueError: the data are invalid; the message names file and id.
            OSError: a file cannot be read.
        """
        return self._splits

    def build_model(self) -> nn.Module:
        """A new Mask R-CNN; see :class:`preconditioned_attention.lab.models.mask_rcnn.MaskRCNNConfig`.

        Raises:
            ValueError: there is no such model, or its weights are larger than the memory.
        """
        config = MaskRCNNConfig.from_dict(self.model)
        plain = dataclasses.replace(config, pretrained=False, batch_norm="train")
        build_on_meta(
            lambda: make_mask_rcnn(plain, classes=self.classes), f"classes={self.classes}, model={self.model}"
        )
        return make_mask_rcnn(config, classes=self.classes)

    def loss(self, model: nn.Module, batch: tuple[Images, Targets]) -> Tensor:
        """The sum of the five losses of Mask R-CNN."""
        return torch.stack(list(model(*batch).values())).sum()

    def evaluate(self, model: nn.Module, batch: tuple[Images, Targets]) -> dict[str, list[Any]]:
        """The detections of every image."""
        images, _ = batch
        return {"detections": [encode_detections(one) for one in model(images)]}

    def score(self, dataset: Dataset[Any], values: Mapping[str, list[Detections]]) -> dict[str, float]:
        """Average precision of boxes and masks: overall, at IoU 0.5 and 0.75, and by the size of the objects."""
        if not isinstance(dataset, CocoInstances):
            raise TypeError(f"dataset must be a CocoInstances; got {type(dataset).__name__}")
        return average_precision(dataset.api, dataset.image_ids, dataset.category_ids, values["detections"])

    def pictures(self, model: nn.Module) -> dict[str, Picture]:
        """Detections on the first test images, below the true objects."""
        test = self.datasets().test
        return {"detections": draw_scenes(model, [test[index] for index in range(min(PICTURED, len(test)))])}  # type: ignore[arg-type]

    def example_batch(self, size: int = 4) -> tuple[Tensor]:
        """The first ``size`` validation images, padded to one size, ``(size, 3, H, W)``."""
        check_integer("size", size, minimum=1)
        validation = self.datasets().validation
        images = [validation[index][0] for index in range(min(size, len(validation)))]  # type: ignore[arg-type]
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        filled = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
        return (torch.stack(filled),)


@dataclass(frozen=True, kw_only=True)
class Coco(InstanceSegmentation):
    """The ``coco`` task: COCO 2017, or your own data in its layout.

    ``root`` holds ``annotations/instances_train2017.json``, ``annotations/instances_val2017.json`` and the folders
    ``train2017`` and ``val2017``. The test split is val2017, which published numbers are about; the validation split,
    which may choose a learning rate, is kept back from train2017.

    Args:
        root: the folder.
        model: options of :class:`preconditioned_attention.lab.models.mask_rcnn.MaskRCNNConfig`.
        classes: the number of categories.
        kept_back: how many images of train2017, the last ones by id, are the validation split.
        sides: the shorter sides that training images are resized to, one at random.
        longest: the most that their longer side may have.
        crop: crop half of the training images at a second choice of sizes first.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    root: str = "coco"
    model: dict[str, Any] = field(default_factory=dict)
    classes: int = 80
    kept_back: int = 2000
    sides: tuple[int, ...] = tuple(range(480, 801, 32))
    longest: int = 1333
    crop: bool = True

    name: ClassVar[str] = "coco"

    def __post_init__(self) -> None:
        for name in ("classes", "kept_back", "longest"):
            check_integer(name, getattr(self, name), minimum=1)
        if not isinstance(self.root, str):
            raise TypeError(f"root must be the path of a folder; got {self.root!r}")
        if not isinstance(self.crop, bool):
            raise TypeError(f"crop must be true or false; got {self.crop!r}")
        if not isinstance(self.sides, list | tuple):
            raise TypeError(f"sides must be a list of numbers of pixels; got {self.sides!r}")
        if not self.sides:
            raise ValueError("sides must hold at least one number of pixels")
        object.__setattr__(self, "sides", tuple(check_integer("sides", side, minimum=1) for side in self.sides))
        largest = min(max(self.sides), self.longest) * self.longest
        check_memory(f"sides={self.sides} and longest={self.longest}: one image", largest * BYTES_PER_PIXEL)
        MaskRCNNConfig.from_dict(self.model)

    def open_splits(self) -> Splits:
        """Train and validation from train2017, test from val2017."""
        augmentation = require("preconditioned_attention.lab.data.coco_augmentation", extra="vision")
        transform = augmentation.make_training_transform(sides=self.sides, longest=self.longest, crop=self.crop)
        labeled, test = self._open("train2017", training=True), self._open("val2017")
        cut = len(labeled) - self.kept_back
        return Splits(
            labeled.select(range(max(cut, 0)), transform=transform),
            labeled.select(range(max(cut, 0), len(labeled))),
            test,
            collate_examples,
        )

    def _open(self, split: str, *, training: bool = False) -> CocoInstances:
        root = Path(self.root).expanduser()
        opened = CocoInstances(root / "annotations" / f"instances_{split}.json", root / split, training=training)
        if len(opened.category_ids) != self.classes:
            raise ValueError(
                f"classes must be the number of categories in {opened.file}, {len(opened.category_ids)}; "
                f"got {self.classes}"
            )
        return opened


@dataclass(frozen=True, kw_only=True)
class DigitScenesTask(InstanceSegmentation):
    """The ``digit-scenes`` task: see :mod:`preconditioned_attention.lab.data.digit_scenes`.

    Args:
        root: a folder that ``precond data digit-scenes`` wrote, or None: ``runs/data/digit-scenes-...``, which is
            written with the options below if it is not there.
        model: options of :class:`preconditioned_attention.lab.models.mask_rcnn.MaskRCNNConfig`.
        classes, count, held_out, data_seed, image_size: of the scenes; a folder of other scenes is an error.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    root: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    classes: int = 1
    count: int = 1200
    held_out: int = 200
    data_seed: int = 0
    image_size: int = 96

    name: ClassVar[str] = "digit-scenes"

    def __post_init__(self) -> None:
        if not isinstance(self.root, str | None):
            raise TypeError(f"root must be the path of a folder, or None; got {self.root!r}")
        MaskRCNNConfig.from_dict(self.model)
        self._scenes()

    def open_splits(self) -> Splits:
        """The three splits, read from the folder."""
        scenes = self._scenes()
        root = self._folder(scenes)
        if self.root is None and not root.exists():
            _write_unless_there(root, scenes)
        files = {split: root / "annotations" / f"instances_{split}.json" for split in ("train", "val", "test")}
        opened = {
            split: CocoInstances(path, root / "images", training=split == "train") for split, path in files.items()
        }
        for split, path in files.items():
            info = opened[split].api.dataset.get("info")
            _check_same(scenes, info.get("options") if isinstance(info, dict) else None, path)
        return Splits(opened["train"], opened["val"], opened["test"], collate_examples)

    def _scenes(self) -> DigitScenes:
        return DigitScenes(
            count=self.count,
            held_out=self.held_out,
            seed=self.data_seed,
            classes=self.classes,
            image_size=self.image_size,
        )

    def _folder(self, scenes: DigitScenes) -> Path:
        if self.root is not None:
            return Path(self.root).expanduser()
        values = dataclasses.asdict(scenes)
        return SCENES_ROOT / "-".join(["digit-scenes", *(f"{name}{value}" for name, value in values.items())])


def _write_unless_there(root: Path, scenes: DigitScenes) -> None:
    """Write the scenes; of several processes that do so at once, the first to finish wins."""
    logger.warning("writing the scenes to %s", root)
    try:
        write_digit_scenes(root, scenes)
    except (OSError, ValueError):
        if not root.exists():
            raise


def _check_same(scenes: DigitScenes, written: object, path: Path) -> None:
    wanted = dataclasses.asdict(scenes)
    if written != wanted:
        raise ValueError(
            f"{path} holds other scenes than the task's options say: {json.dumps(written)}, not {json.dumps(wanted)}; "
            "give the task the options of the folder, or another folder"
        )
