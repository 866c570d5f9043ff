"""Pictures of detections: boxes, masks and scores, below the true objects."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..._extras import require
from ..reporting import Picture

LEAST_SCORE = 0.5
LEAST_SIDE = 240  # small images are enlarged, so that boxes and scores can be read
GAP = 6
FONT_SIZE = 14
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2", "#ffffff")  # Okabe and Ito


def draw_scenes(model: nn.Module, examples: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> Picture:
    """One column per image: the true objects above, detections with a score of at least 0.5 below."""
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        outputs = [model([image.to(device, next(model.parameters()).dtype)])[0] for image, _ in examples]
    truths = [_draw(image, target["boxes"], target["masks"] > 0, None) for image, target in examples]
    found = [_draw(image, *_confident(output)) for (image, _), output in zip(examples, outputs, strict=True)]
    count = sum(int((output["scores"] >= LEAST_SCORE).sum()) for output in outputs)
    true_count = sum(len(target["boxes"]) for _, target in examples)
    return Picture(
        _png(_sheet([truths, found])),
        f"{len(examples)} test images: {true_count} true objects above, {count} found below",
        f"Above: the true objects. Below: detections with a score of at least {LEAST_SCORE}, with boxes, masks and "
        "scores. The first test images, not selected.",
    )


def _confident(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[str]]:
    keep = output["scores"] >= LEAST_SCORE
    scores = [f"{score:.2f}" for score in output["scores"][keep].tolist()]
    return output["boxes"][keep].cpu(), (output["masks"][keep, 0] > 0.5).cpu(), scores


def _draw(image: Tensor, boxes: Tensor, masks: Tensor, scores: list[str] | None) -> Tensor:
    """An image, uint8 ``(3, H, W)``, with objects drawn on it; enlarged if it is small."""
    utils = require("torchvision.utils", extra="vision")
    factor = max(1, -(-LEAST_SIDE // min(image.shape[1:])))
    canvas = (image * 255).round().byte()
    canvas = canvas.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    if not len(boxes):
        return canvas
    colors = [COLORS[number % len(COLORS)] for number in range(len(boxes))]
    masks = masks.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    for mask, color in zip(masks, colors, strict=True):  # in one call, pixels of two masks would turn black
        canvas = utils.draw_segmentation_masks(canvas, mask, alpha=0.55, colors=color)
    return utils.draw_bounding_boxes(
        canvas,
        boxes * factor,
        labels=scores,
        colors=colors,
        width=2,
        font=None if scores is None else _font(),
        font_size=None if scores is None else FONT_SIZE,
        label_colors="black",
        label_background_colors=colors,
        fill_labels=scores is not None,
    )


def _font() -> str:
    """The path of a font that comes with matplotlib; Pillow's own is too small to read."""
    matplotlib = require("matplotlib", extra="train")
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _sheet(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Images in rows and columns on white."""
    height, width = (max(image.shape[axis] for row in rows for image in row) for axis in (1, 2))
    sheet = torch.full(
        (3, len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP), 255, dtype=torch.uint8
    )
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + GAP), x * (width + GAP)
            sheet[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return sheet


def _png(image: Tensor) -> bytes:
    functional = require("torchvision.transforms.v2.functional", extra="vision")
    written = io.BytesIO()
    functional.to_pil_image(image).save(written, format="PNG")
    return written.getvalue()
