"""torchvision's Mask R-CNN (K. He et al., ICCV 2017) on a backbone of timm.

The detectors of the XCiT and Swin papers were trained with mmdetection, whose heads differ from torchvision's in a few
settings. The defaults here are torchvision's; :class:`MaskRCNNConfig` says which setting is mmdetection's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from ..._checks import check_integer, check_known
from ..._extras import require
from ..data.limits import check_memory
from .pyramid import LEVELS, STRIDES, FeaturePyramid
from .weights_size import check_depth

BoxLoss = Literal["smooth_l1", "l1"]
RoIAlignKind = Literal["sampled", "aligned"]
BatchNorm = Literal["train", "frozen", "synchronized"]
BYTES_PER_PIXEL = 3 * 4  # three channels in float32
COUNTS = (
    *("channels", "proposals", "proposals_per_level", "rpn_samples", "roi_samples"),
    *("box_hidden", "mask_layers", "mask_channels", "mask_pool", "detections", "test_size", "max_size"),
)


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig:
    """Options of a detector. Sizes are in pixels.

    Args:
        backbone, backbone_options, taps: see :class:`preconditioned_attention.lab.models.pyramid.FeaturePyramid`.
        pretrained: load timm's pretrained weights of the backbone.
        channels: channels of the pyramid.
        batch_norm: of the backbone and the pyramid: ``"train"``; ``"frozen"``: the backbone's statistics and affine
            parameters stay as they are, which suits small batches and pretrained weights; ``"synchronized"``:
            statistics over all processes (GPUs).
        anchor_sizes: the side of the anchors at strides 4, 8, 16, 32 and 64, each at three shapes.
        round_anchors: torchvision rounds the corners of anchors to whole pixels; mmdetection does not.
        box_loss: torchvision's ``"smooth_l1"`` turns quadratic below 1/9; mmdetection's is ``"l1"``.
        roi_align: ``"sampled"`` is torchvision's: two by two samples per bin, corners half a pixel off; ``"aligned"``
            is mmdetection's: as many samples as fit, no offset.
        proposals: how many proposals per image leave the region proposal network in training; torchvision 2000,
            mmdetection 1000. In evaluation at most 1000 of them.
        proposals_per_level: how many of each level enter non-maximum suppression in training; half in evaluation.
        rpn_samples: anchors per image in the proposal network's loss.
        roi_samples: proposals per image in the heads' losses.
        box_hidden: width of the box head's two layers.
        mask_layers, mask_channels: convolutions of the mask head, and their width.
        mask_pool: side of what is pooled for a mask, which has twice that side.
        detections: the most per image.
        test_size: images are resized to this shorter side in evaluation.
        max_size: but to no more than this longer side.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    backbone: str = "xcit_small_12_p16_224"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    taps: tuple[int, ...] | None = (3, 5, 7, 11)
    pretrained: bool = False
    channels: int = 256
    batch_norm: BatchNorm = "train"
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    round_anchors: bool = True
    box_loss: BoxLoss = "smooth_l1"
    roi_align: RoIAlignKind = "sampled"
    proposals: int = 2000
    proposals_per_level: int = 2000
    rpn_samples: int = 256
    roi_samples: int = 512
    box_hidden: int = 1024
    mask_layers: int = 4
    mask_channels: int = 256
    mask_pool: int = 14
    detections: int = 100
    test_size: int = 800
    max_size: int = 1333

    def __post_init__(self) -> None:
        for name in COUNTS:
            check_integer(name, getattr(self, name), minimum=1)
        check_depth({"mask_layers": self.mask_layers})
        check_memory(f"max_size={self.max_size}: one image", self.max_size * self.max_size * BYTES_PER_PIXEL)
        self._check_backbone()
        for name in ("pretrained", "round_anchors"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false; got {getattr(self, name)!r}")
        for name, kind in (("batch_norm", BatchNorm), ("box_loss", BoxLoss), ("roi_align", RoIAlignKind)):
            check_known(name, [getattr(self, name)], get_args(kind))
        if not isinstance(self.anchor_sizes, list | tuple) or len(self.anchor_sizes) != len(STRIDES) + 1:
            raise ValueError(f"anchor_sizes must hold one size for each of five levels; got {self.anchor_sizes!r}")
        object.__setattr__(
            self, "anchor_sizes", tuple(check_integer("anchor_sizes", s, minimum=1) for s in self.anchor_sizes)
        )
        if self.taps is not None:
            if not isinstance(self.taps, list | tuple) or not self.taps:
                raise TypeError(f"taps must be a list of numbers of blocks or stages, or None; got {self.taps!r}")
            object.__setattr__(self, "taps", tuple(check_integer("taps", tap, minimum=0) for tap in self.taps))

    def _check_backbone(self) -> None:
        if not isinstance(self.backbone, str):
            raise TypeError(f"backbone must be a model name of timm; got {self.backbone!r}")
        if not isinstance(self.backbone_options, Mapping):
            raise TypeError(f"backbone_options must be a mapping of options; got {self.backbone_options!r}")
        check_depth(self.backbone_options)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> MaskRCNNConfig:
        """From plain values; options left out keep their defaults.

        Raises:
            ValueError, TypeError: an option is unknown or has a value it cannot have.
        """
        if not isinstance(options, Mapping):
            raise TypeError(f"model must be a mapping of options of the detector; got {options!r}")
        check_known("option of the detector:", options, cls.__dataclass_fields__)
        return cls(**options)


def make_mask_rcnn(config: MaskRCNNConfig, *, classes: int) -> nn.Module:
    """A new Mask R-CNN of torchvision's parts for categories labeled 1 to ``classes``; 0 is the background.

    In training ``model(images, targets)`` gives a dictionary of losses, in evaluation ``model(images)`` one dictionary
    of boxes, labels, scores and masks per image. Training images are taken in the size they come in.

    Raises:
        ValueError: there is no such backbone.
        OSError: pretrained weights cannot be loaded.
        ImportError: the extra ``vision`` is missing.
    """
    check_integer("classes", classes, minimum=1)
    detection = require("torchvision.models.detection", extra="vision")
    heads = require("preconditioned_attention.lab.models.detection_heads", extra="vision")
    backbone = FeaturePyramid(
        config.backbone,
        options=config.backbone_options,
        taps=config.taps,
        channels=config.channels,
        pretrained=config.pretrained,
    )
    if config.batch_norm == "frozen":
        backbone.body = require("timm.layers", extra="vision").freeze_batch_norm_2d(backbone.body)
    anchors = heads.Anchors(config.anchor_sizes, rounded=config.round_anchors)
    align = heads.AlignedRoIAlign if config.roi_align == "aligned" else heads.SampledRoIAlign
    mask_widths = (config.mask_channels,) * config.mask_layers
    model = heads.Detector(
        backbone,
        min_size=config.test_size,
        max_size=config.max_size,
        _skip_resize=True,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=config.proposals_per_level,
        rpn_pre_nms_top_n_test=max(1, config.proposals_per_level // 2),
        rpn_post_nms_top_n_train=config.proposals,
        rpn_post_nms_top_n_test=min(config.proposals, 1000),
        rpn_batch_size_per_image=config.rpn_samples,
        box_roi_pool=align(LEVELS, 7),
        box_head=detection.faster_rcnn.TwoMLPHead(config.channels * 7**2, config.box_hidden),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(config.box_hidden, classes + 1),
        box_batch_size_per_image=config.roi_samples,
        box_detections_per_img=config.detections,
        mask_roi_pool=align(LEVELS, config.mask_pool),
        mask_head=detection.mask_rcnn.MaskRCNNHeads(config.channels, mask_widths, 1),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(config.mask_channels, config.mask_channels, classes + 1),
    )
    if config.box_loss == "l1":
        heads.use_l1_(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if config.batch_norm == "synchronized" else model
