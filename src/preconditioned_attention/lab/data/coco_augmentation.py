"""The training augmentation of DETR, Swin and XCiT for COCO: random sizes, and random crops at other sizes.

Source: N. Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, as the XCiT detectors use it.
This module needs torchvision when it is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision.transforms import v2

SIDES = tuple(range(480, 801, 32))
LONGEST = 1333
SIDES_BEFORE_CROP = (400, 500, 600)
CROP = (384, 600)


class RandomSizeCrop(v2.Transform):
    """Crop a random window whose sides are drawn between two numbers of pixels, or less where the image is smaller."""

    def __init__(self, smallest: int, largest: int) -> None:
        super().__init__()
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window."""
        height, width = v2.functional.get_size(flat_inputs[0])
        sides = [_draw(min(self.smallest, side), min(self.largest, side)) for side in (height, width)]
        return {
            "top": _draw(0, height - sides[0]),
            "left": _draw(0, width - sides[1]),
            "height": sides[0],
            "width": sides[1],
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop one of image, boxes and masks."""
        return self._call_kernel(v2.functional.crop, inpt, **params)


def make_training_transform(
    *, sides: Sequence[int] = SIDES, longest: int = LONGEST, flip: bool = True, crop: bool = True
) -> v2.Transform:
    """Flip, resize to one of several shorter sides; half of the images are cropped at a smaller size in between.

    Boxes that a crop leaves with less than a pixel are dropped with their labels and masks.

    Args:
        sides: the shorter sides to draw from.
        longest: the most that the longer side may have.
        flip: mirror half of the images.
        crop: crop half of them.
    """
    resize = v2.RandomShortestSize(list(sides), max_size=longest)
    cropped = v2.Compose([v2.RandomShortestSize(list(SIDES_BEFORE_CROP)), RandomSizeCrop(*CROP), resize])
    steps = [v2.RandomHorizontalFlip(0.5)] if flip else []
    steps.append(v2.RandomChoice([resize, cropped]) if crop else resize)
    return v2.Compose([*steps, v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()])


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))
