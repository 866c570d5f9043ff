"""Base of the Long Range Arena's tasks: Nystromformer's encoder and schedule, accuracy, the majority class as baseline.

Y. Tay et al., Long Range Arena, ICLR 2021; the model and the settings are those of Y. Xiong et al., Nystromformer,
AAAI 2021. Different from its code: every example of a split counts, also those that do not fill a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from ..._checks import check_integer, check_path
from ..data.sequences import collate_sequences
from ..models.long_range import Attention, LongRangeEncoder
from ..models.weights_size import build_on_meta, check_depth
from .one_cycle import make_one_cycle
from .optimizer import OptimizerSettings
from .sizes import LARGEST_SIZE
from .task import Splits, Task


@dataclass(frozen=True, kw_only=True)
class LongRangeTask(Task):
    """The base of the five tasks. Options but ``data`` are those of :class:`LongRangeEncoder`, which checks them.

    Args:
        data: the folder of the data; each task documents its layout.
        positions: the longest sequence that the model takes.
    """

    data: str | None = None
    positions: int
    attention: Attention = "nystrom"
    depth: int = 2
    dim: int = 64
    num_heads: int = 2
    mlp_dim: int = 128
    num_landmarks: int = 64
    conv_kernel_size: int = 35
    dropout: float = 0.1

    name: ClassVar[str]
    vocabulary: ClassVar[int]
    classes: ClassVar[int]
    inputs: ClassVar[int] = 1
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    decay_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_path("data", self.data, "a folder")
        for name in ("positions", "dim", "num_heads", "mlp_dim", "num_landmarks", "conv_kernel_size"):
            check_integer(name, getattr(self, name), minimum=1, maximum=LARGEST_SIZE)
        check_depth({"depth": check_integer("depth", self.depth, minimum=1)})
        build_on_meta(self.build_model, f"task {self.name!r} with positions={self.positions}, dim={self.dim}")

    def build_model(self) -> nn.Module:
        """A new encoder."""
        return LongRangeEncoder(
            vocabulary=self.vocabulary,
            positions=self.positions,
            classes=self.classes,
            inputs=self.inputs,
            attention=self.attention,
            depth=self.depth,
            dim=self.dim,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            num_landmarks=self.num_landmarks,
            conv_kernel_size=self.conv_kernel_size,
            dropout=self.dropout,
        )

    @abstractmethod
    def datasets(self) -> Splits:
        """Ids, int64 ``(N,)`` (two of them for pairs), and a label; every split has its ``labels`` as an attribute.

        Raises:
            ValueError, OSError: the data is missing or invalid; the message names file and line.
        """

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross-entropy."""
        *ids, labels = batch
        return F.cross_entropy(model(*ids), labels)

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Cross-entropy and accuracy (0 or 1) of every example, each of shape ``(B,)``."""
        *ids, labels = batch
        logits = model(*ids)
        right = (logits.argmax(dim=-1) == labels).float()
        return {"loss": F.cross_entropy(logits, labels, reduction="none"), "accuracy": right}

    def example_batch(self, size: int = 4) -> tuple[Tensor, ...]:
        """The ids of the first ``size`` validation examples."""
        validation = self.datasets().validation
        check_integer("size", size, minimum=1)
        return collate_sequences([validation[index] for index in range(min(size, len(validation)))])[:-1]  # type: ignore[arg-type]

    def baselines(self) -> dict[str, float]:
        """The test accuracy of the class that is most frequent in training."""
        train, test = (cast(Labeled, split).labels for split in (self.datasets().train, self.datasets().test))
        return {"majority": lookup_accuracy([0] * len(train), train, [0] * len(test), test)}

    def make_scheduler(self, optimizer: Optimizer, settings: OptimizerSettings) -> OneCycleLR:
        """One cycle, of the learning rate and of AdamW's first beta."""
        return make_one_cycle(optimizer, settings)

    def folder(self, what: str) -> Path:
        """The folder of the data.

        Raises:
            ValueError: there is none; ``what`` describes it in the message.
        """
        if self.data is None:
            raise ValueError(f"data must be {what}; give it with --task-options data=FOLDER")
        path = Path(self.data).expanduser()
        if not path.is_dir():
            raise FileNotFoundError(f"data: there is no folder {path}; it must be {what}")
        return path


class Labeled(Protocol):
    """A split whose labels are available without reading every example."""

    labels: Sequence[int]


def lookup_accuracy(
    train_keys: Iterable[int], train_labels: Iterable[int], test_keys: Iterable[int], test_labels: Sequence[int]
) -> float:
    """The test accuracy of answering every key with the label that it most often has in training."""
    counts: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for key, label in zip(train_keys, train_labels, strict=True):
        counts[key][label] += 1
    answers = {key: counter.most_common(1)[0][0] for key, counter in counts.items()}
    right = (answers.get(key) == label for key, label in zip(test_keys, test_labels, strict=True))
    return sum(right) / len(test_labels)
