"""The model of a finished run, from its folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..._extras import require
from ..tasks import Task, make_task
from .config import TrainConfig
from .folder import RunFolder


def load_trained(path: Path) -> tuple[Task, nn.Module]:
    """The task of a finished run and its model with the weights that were evaluated, in evaluation mode.

    Args:
        path: the run's folder, as :func:`train` wrote it.

    Raises:
        ValueError: the folder holds no finished run. OSError: it cannot be read.
    """
    folder = RunFolder(path)
    if not (folder.config.exists() and folder.weights.exists()):
        raise ValueError(f"{path} holds no finished run: {folder.config.name} and {folder.weights.name} are expected")
    config = TrainConfig.from_yaml(folder.config.read_text(encoding="utf-8"), source=str(folder.config))
    task = make_task(config.task, config.task_options)
    model = task.build_model()
    if config.precondition is not None:
        config.precondition.apply(model)
    require("safetensors.torch", extra="train").load_model(model, str(folder.weights))
    return task, model.eval()
