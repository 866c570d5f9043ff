"""A small vision transformer that reads handwritten digits.

Model: timm's ``VisionTransformer`` (A. Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021) with random
weights, on the 8 x 8 images of :mod:`preconditioned_attention.lab.data.digits`. No augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._checks import check_integer, check_number
from ..._extras import require
from ..data.digits import load_digits
from .task import Splits, Task

IMAGE_SIZE = 8
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Digits(Task):
    """The ``digits`` task. The options are those of timm's ``VisionTransformer``, and the seed of the split.

    Args:
        patch_size: pixels along a patch's side; must divide 8.
        embed_dim: width; must be a multiple of ``num_heads``.
        depth: blocks.
        num_heads: attention heads per block.
        mlp_ratio: hidden width of the MLP over ``embed_dim``.
        proj_drop_rate: dropout after projections and in the MLP.
        attn_drop_rate: dropout of attention weights.
        split_seed: decides which images are for training, validation and test.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    patch_size: int = 2
    embed_dim: int = 64
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 2.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    split_seed: int = 0

    name: ClassVar[str] = "digits"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("patch_size", "embed_dim", "depth", "num_heads"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("split_seed", self.split_seed, minimum=0)
        check_number("mlp_ratio", self.mlp_ratio, above=0.0)
        check_number("proj_drop_rate", self.proj_drop_rate, below=1.0)
        check_number("attn_drop_rate", self.attn_drop_rate, below=1.0)
        if IMAGE_SIZE % self.patch_size:
            raise ValueError(f"patch_size must divide the image size, {IMAGE_SIZE}; got {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads; got embed_dim={self.embed_dim}, num_heads={self.num_heads}"
            )

    def build_model(self) -> nn.Module:
        """A new vision transformer: 10 classes, one class token and ``(8 / patch_size) ** 2`` patches."""
        timm = require("timm", extra="vision")
        return timm.models.VisionTransformer(
            img_size=IMAGE_SIZE,
            patch_size=self.patch_size,
            in_chans=1,
            num_classes=CLASSES,
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            proj_drop_rate=self.proj_drop_rate,
            attn_drop_rate=self.attn_drop_rate,
        )

    def datasets(self) -> Splits:
        """Images ``(1, 8, 8)`` and labels; see :func:`preconditioned_attention.lab.data.digits.load_digits`."""
        return Splits(*load_digits(split_seed=self.split_seed))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and accuracy (0 or 1) of every image, each of shape ``(B,)``."""
        images, labels = batch
        logits = model(images)
        accuracy = (logits.argmax(dim=-1) == labels).to(logits.dtype)
        return {"loss": F.cross_entropy(logits, labels, reduction="none"), "accuracy": accuracy}

    def example_batch(self, size: int = 32) -> tuple[Tensor]:
        """The first ``size`` validation images, ``(size, 1, 8, 8)``."""
        validation = self.datasets().validation
        check_integer("size", size, minimum=1)
        return (torch.stack([validation[index][0] for index in range(min(size, len(validation)))]),)  # type: ignore[arg-type]
