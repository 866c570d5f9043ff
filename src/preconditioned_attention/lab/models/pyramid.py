"""Feature pyramids: four maps of strides 4, 8, 16 and 32 from a backbone of timm.

A plain transformer keeps one resolution. XCiT's detectors (A. El-Nouby et al., XCiT: Cross-Covariance Image
Transformers, NeurIPS 2021) take the outputs of four blocks and resample each to its own stride by transposed
convolutions or pooling; a feature pyramid network (T.-Y. Lin et al., CVPR 2017) combines them. For plain vision
transformers the simple feature pyramid (Y. Li et al., Exploring Plain Vision Transformer Backbones for Object
Detection, ECCV 2022) takes all four from the last block and combines nothing. Backbones that have the four strides of
their own, such as Swin, need the network alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..._extras import require
from ..data.image_files import one_line

STRIDES = (4, 8, 16, 32)
LEVELS = ("0", "1", "2", "3")
LAST_LEVEL = "pool"  # what torchvision calls the level of stride 64


class FeaturePyramid(nn.Module):
    """A backbone of timm with a pyramid, as torchvision's detectors take it: ``out_channels`` and a dict of five maps.

    Args:
        name: a model name of timm whose feature extractor gives maps, ``features_only=True``.
        options: further arguments of ``timm.create_model``.
        taps: which feature maps: blocks for backbones of one resolution (four for XCiT's pyramid, one for the simple
            one), stages for the others. None: what timm gives.
        channels: channels of every map of the pyramid.
        pretrained: load timm's pretrained weights.

    Raises:
        ValueError: no such backbone, or its maps cannot be resampled to the four strides.
        OSError: pretrained weights cannot be loaded.
        ImportError: the extra ``vision`` is missing.
    """

    def __init__(
        self,
        name: str,
        *,
        options: Mapping[str, Any],
        taps: Sequence[int] | None,
        channels: int,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.body = _make_body(name, options, taps, pretrained=pretrained)
        self.out_channels = channels
        reductions = [int(reduction) for reduction in self.body.feature_info.reduction()]
        widths = list(self.body.feature_info.channels())
        if len(reductions) == 1:
            self.levels: nn.Module = _Spread(widths[0], reductions[0])
            self.join: nn.Module = _SimplePyramid(self.levels.channels, channels)
        elif len(set(reductions)) == 1 and len(reductions) == len(STRIDES):
            self.levels = _Taps(widths, reductions[0])
            self.join = _network(self.levels.channels, channels)
        elif tuple(reductions) == STRIDES:
            self.levels = _Stages()
            self.join = _network(widths, channels)
        else:
            raise ValueError(
                f"backbone {name!r} with taps {taps} gives maps of strides {reductions}; a pyramid is made from four "
                f"of one stride, from one, or from strides {list(STRIDES)}"
            )

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Maps "0" to "3" of strides 4 to 32 and "pool" of stride 64, ``(B, channels, H, W)``."""
        maps = self.levels(self.body(images))
        return self.join(OrderedDict(zip(LEVELS, maps, strict=True)))


def _make_body(name: str, options: Mapping[str, Any], taps: Sequence[int] | None, *, pretrained: bool) -> Any:
    timm = require("timm", extra="vision")
    if not timm.is_model(name):
        raise ValueError(f"backbone must be a model name of timm (timm.list_models()); got {name!r}")
    chosen = {} if taps is None else {"out_indices": tuple(taps)}
    try:
        body = timm.create_model(name, pretrained=pretrained, features_only=True, **chosen, **options)
    except Exception as error:  # of the hub, of the network or of the file
        if not pretrained and isinstance(error, OSError | RuntimeError):
            raise
        if not pretrained:
            raise ValueError(
                f"timm makes no backbone {name!r} with the options {dict(options)!r} and taps {taps}: {one_line(error)}"
            ) from error
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise OSError(
            f"pretrained weights of backbone {name!r} could not be loaded ({reason}). They come from the hub "
            "unless they are in its cache; pretrained: false starts from random weights"
        ) from error
    if getattr(body, "output_fmt", None) == "NHWC":
        return _ChannelsFirst(body)
    return body


class _ChannelsFirst(nn.Module):
    """Permutes the maps of a backbone with channels last, such as Swin, to ``(B, C, H, W)``."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.feature_info = body.feature_info

    def forward(self, images: Tensor) -> list[Tensor]:
        return [features.permute(0, 3, 1, 2).contiguous() for features in self.body(images)]


class _Stages(nn.Module):
    """Maps of the four strides, unchanged."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return list(maps)


class _Taps(nn.Module):
    """Four maps of one stride, each resampled to its own; the number of channels stays."""

    def __init__(self, channels: Sequence[int], stride: int) -> None:
        super().__init__()
        self.channels = list(channels)
        pairs = zip(self.channels, STRIDES, strict=True)
        self.rescale = nn.ModuleList(_rescale(width, stride, wanted, width) for width, wanted in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [rescale(features) for rescale, features in zip(self.rescale, maps, strict=True)]


class _Spread(nn.Module):
    """One map resampled to all four strides; every doubling halves the channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = [max(channels // max(stride // wanted, 1), 8) for wanted in STRIDES]
        pairs = zip(self.channels, STRIDES, strict=True)
        norm = require("timm.layers", extra="vision").LayerNorm2d
        self.rescale = nn.ModuleList(_rescale(channels, stride, wanted, width, norm) for width, wanted in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [rescale(maps[0]) for rescale in self.rescale]


def _rescale(
    channels: int, stride: int, wanted: int, out_channels: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Module:
    """From one stride to another by factors of two, with norm and GELU between transposed convolutions."""
    if wanted == stride:
        return nn.Identity()
    if wanted > stride:
        factor = wanted // stride
        return nn.MaxPool2d(kernel_size=factor, stride=factor)
    layers: list[nn.Module] = []
    width = channels
    while stride > wanted:
        stride //= 2
        narrower = out_channels if stride == wanted else max(width // 2, out_channels)
        layers += [norm(width), nn.GELU()] if layers else []
        layers.append(nn.ConvTranspose2d(width, narrower, kernel_size=2, stride=2))
        width = narrower
    return nn.Sequential(*layers)


def _network(widths: Sequence[int], channels: int) -> nn.Module:
    ops = require("torchvision.ops", extra="vision")
    pooling = require("torchvision.ops.feature_pyramid_network", extra="vision").LastLevelMaxPool()
    return ops.FeaturePyramidNetwork(list(widths), channels, extra_blocks=pooling)


class _SimplePyramid(nn.Module):
    """Per level a 1 x 1 and a 3 x 3 convolution, each with a layer norm over channels; levels are not combined."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        norm = require("timm.layers", extra="vision").LayerNorm2d
        self.project = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, channels, kernel_size=1, bias=False),
                norm(channels),
                nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
                norm(channels),
            )
            for width in widths
        )
        self.last = nn.MaxPool2d(kernel_size=1, stride=2)

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        joined = OrderedDict((name, layer(maps[name])) for name, layer in zip(maps, self.project, strict=True))
        joined[LAST_LEVEL] = self.last(joined[LEVELS[-1]])
        return joined
