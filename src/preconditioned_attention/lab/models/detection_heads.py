"""Variants of the parts of torchvision's Mask R-CNN: anchors, RoIAlign, box losses, precision.

This module needs torchvision when it is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from .pyramid import STRIDES

SHAPES = (0.5, 1.0, 2.0)  # height over width
FIRST_LEVEL = 2  # the pyramid's first map has stride 2 ** 2
CANONICAL_SCALE, CANONICAL_LEVEL = 224, 4


class Detector(MaskRCNN):
    """torchvision's Mask R-CNN whose heads compute in the images' precision, whatever autocast says.

    torchvision's own casts anchors and boxes to the type of the features, and in bfloat16 coordinates around 1000 are
    4 pixels apart. The backbone, where most of the work and all attention is, follows autocast.
    """

    def forward(
        self, images: Sequence[Tensor] | Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation."""
        sizes = [tuple(image.shape[-2:]) for image in images]
        batch, targets = self.transform(list(images), targets)
        features = self.backbone(batch.tensors)
        with torch.autocast(batch.tensors.device.type, enabled=False):
            features = {name: maps.to(batch.tensors.dtype) for name, maps in features.items()}
            proposals, proposal_losses = self.rpn(batch, features, targets)
            detections, losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        if self.training:
            return {**losses, **proposal_losses}
        return self.transform.postprocess(detections, batch.image_sizes, sizes)


class Anchors(AnchorGenerator):
    """One anchor size per level, at three shapes; corners rounded to whole pixels or not."""

    def __init__(self, sizes: Sequence[int], *, rounded: bool) -> None:
        self.rounded = rounded
        super().__init__(sizes=tuple((size,) for size in sizes), aspect_ratios=(SHAPES,) * len(sizes))

    def generate_anchors(
        self,
        scales: Sequence[int],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - torchvision's signature
    ) -> Tensor:
        """Corners of the anchors around the origin, ``(sizes x shapes, 4)``."""
        if self.rounded:
            return super().generate_anchors(scales, aspect_ratios, dtype, device)
        heights = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        sides = torch.tensor(scales, dtype=dtype, device=device)
        height, width = (heights[:, None] * sides).flatten(), (sides / heights[:, None]).flatten()
        return torch.stack([-width, -height, width, height], dim=1) / 2


class SampledRoIAlign(MultiScaleRoIAlign):
    """torchvision's pooling as its detectors use it: two by two samples per bin."""

    def __init__(self, levels: Sequence[str], size: int) -> None:
        super().__init__(list(levels), size, sampling_ratio=2)


class AlignedRoIAlign(MultiScaleRoIAlign):
    """Pooling without the offset of half a pixel, with as many samples per bin as fit: what mmdetection does."""

    def __init__(self, levels: Sequence[str], size: int) -> None:
        super().__init__(list(levels), size, sampling_ratio=0)
        last = FIRST_LEVEL + len(STRIDES) - 1
        self.level_of = LevelMapper(FIRST_LEVEL, last, CANONICAL_SCALE, CANONICAL_LEVEL)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """``(boxes of all images, channels, size, size)``; each box from the level that suits its size."""
        levels = self.level_of(boxes)
        numbers = torch.cat([torch.full_like(own[:, :1], image) for image, own in enumerate(boxes)])
        regions = torch.cat([numbers, torch.cat(boxes)], dim=1)
        first = x[self.featmap_names[0]]
        pooled = first.new_zeros(len(regions), first.shape[1], *self.output_size)
        for level, (name, stride) in enumerate(zip(self.featmap_names, STRIDES, strict=True)):
            (chosen,) = torch.where(levels == level)
            own = roi_align(
                x[name].to(regions.dtype), regions[chosen], self.output_size, 1 / stride, sampling_ratio=0, aligned=True
            )
            pooled = pooled.index_copy(0, chosen, own.to(pooled.dtype))
        return pooled


class L1Proposals(RegionProposalNetwork):
    """torchvision's region proposal network with L1 instead of smooth L1."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of the sampled anchors, and L1 of the positive ones over the number of samples."""
        positive, negative = (torch.where(torch.cat(chosen))[0] for chosen in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        wanted = torch.cat(regression_targets)[positive]
        box_loss = F.l1_loss(pred_bbox_deltas[positive], wanted, reduction="sum") / len(sampled)
        logits = objectness.flatten()[sampled]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(labels)[sampled]), box_loss


class L1RoIHeads(RoIHeads):
    """torchvision's box and mask heads with L1 instead of smooth L1; in evaluation there is no difference."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Losses in training, detections in evaluation."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        proposals, matched, labels, regression_targets = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        losses = self._box_losses(logits, deltas, torch.cat(labels), torch.cat(regression_targets))
        positive = [torch.where(own > 0)[0] for own in labels]
        regions = [own[chosen] for own, chosen in zip(proposals, positive, strict=True)]
        mask_logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, regions, image_shapes)))
        matched = [own[chosen] for own, chosen in zip(matched, positive, strict=True)]
        masks, classes = ([target[name] for target in targets or []] for name in ("masks", "labels"))
        return [], {**losses, "loss_mask": maskrcnn_loss(mask_logits, regions, masks, classes, matched)}

    @staticmethod
    def _box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        (positive,) = torch.where(labels > 0)
        own = deltas.view(len(labels), -1, 4)[positive, labels[positive]]
        box_loss = F.l1_loss(own, targets[positive], reduction="sum") / len(labels)
        return {"loss_classifier": F.cross_entropy(logits, labels), "loss_box_reg": box_loss}


def use_l1_(model: Any) -> None:
    """Replace the heads of a ``MaskRCNN`` by :class:`L1Proposals` and :class:`L1RoIHeads` with the same weights."""
    model.rpn = _as(L1Proposals, model.rpn)
    model.roi_heads = _as(L1RoIHeads, model.roi_heads)


def _as(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """``module`` as an instance of a subclass."""
    other = kind.__new__(kind)
    other.__dict__.update(module.__dict__)
    return other
