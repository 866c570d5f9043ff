"""The weights with the best validation metric so far, and their file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..._extras import require

ENTRY = "best"  # one entry of the file's metadata: of several, the order in the file differs from run to run


@dataclass(frozen=True, kw_only=True)
class BestWeights:
    """A copy of a model's weights, the step after which they were evaluated, and the metric they had."""

    step: int
    metric: float
    weights: dict[str, Tensor]


def better(best: BestWeights | None, model: nn.Module, *, step: int, metric: float, higher: bool) -> BestWeights:
    """``best``, or a copy of the weights of ``model`` if their ``metric`` is better; of equals the earlier one."""
    if best is not None and (metric <= best.metric if higher else metric >= best.metric):
        return best
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return BestWeights(step=step, metric=metric, weights=weights)


def save_best(best: BestWeights, path: Path) -> None:
    """Write the weights, with step and metric in the file's metadata."""
    metadata = {ENTRY: json.dumps({"step": best.step, "metric": best.metric})}
    tensors = {name: tensor.contiguous() for name, tensor in best.weights.items()}
    require("safetensors.torch", extra="train").save_file(tensors, str(path), metadata=metadata)


def load_best(path: Path) -> BestWeights:
    """The inverse of :func:`save_best`, on the CPU.

    Raises:
        OSError: the file cannot be read.
    """
    with require("safetensors", extra="train").safe_open(str(path), framework="pt") as file:
        described = json.loads(file.metadata()[ENTRY])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    return BestWeights(**described, weights=weights)
