"""The model of a finished run, from its folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..._checks import naming_source
from ..._extras import require
from ..._files import open_file, read_text
from ..tasks import Task, make_task
from .config import TrainConfig
from .folder import RunFolder


def load_trained(path: Path) -> tuple[Task, nn.Module]:
    """The task of a finished run and its model with the weights that were evaluated, in evaluation mode.

    Args:
        path: the run's folder, as :func:`train` wrote it.

    Raises:
        ValueError: the folder holds no finished run, or weights that do not fit its configuration or are not finite.
        OSError: it cannot be read.
    """
    folder = RunFolder(path)
    if not (folder.config.exists() and folder.weights.exists()):
        raise ValueError(f"{path} holds no finished run: {folder.config.name} and {folder.weights.name} are expected")
    config = TrainConfig.from_yaml(read_text(folder.config), source=str(folder.config))
    with naming_source(str(folder.config)):
        task = make_task(config.task, config.task_options)
    model = task.build_model()
    if config.precondition is not None:
        config.precondition.apply(model)
    _load_weights(model, folder.weights)
    return task, model.eval()


def _load_weights(model: nn.Module, path: Path) -> None:
    open_file(path).close()  # a message of its own for a folder or a pipe
    try:
        require("safetensors.torch", extra="train").load_model(model, str(path))
    except ImportError:
        raise
    except Exception as error:  # safetensors has an error of its own, and torch raises RuntimeError
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not hold the weights of the run's model: {reason}") from error
    wrong = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if wrong:
        raise ValueError(f"{path} holds NaN or infinite weights, first in {wrong[0]}; train again")
