"""The applications: data, model, loss and metric, each a subclass of ``Task``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..._checks import check_known
from .causal_lm import CausalLM
from .detection import Coco, DigitScenesTask
from .glue import Glue
from .image_classification import ImageClassification
from .lra_image import Image
from .lra_listops import ListOps
from .lra_pathfinder import Pathfinder
from .lra_retrieval import Retrieval
from .lra_text import Text
from .masked_lm import MaskedLM
from .notebook_gpt2 import NotebookGPT2
from .optimizer import OptimizerSettings
from .task import Batch, Splits, Task

__all__ = [
    "TASKS",
    "Batch",
    "CausalLM",
    "Coco",
    "DigitScenesTask",
    "Glue",
    "Image",
    "ImageClassification",
    "ListOps",
    "MaskedLM",
    "NotebookGPT2",
    "OptimizerSettings",
    "Pathfinder",
    "Retrieval",
    "Splits",
    "Task",
    "Text",
    "make_task",
]

TASKS: dict[str, Callable[..., Task]] = {
    "image-classification": ImageClassification,
    "coco": Coco,
    "digit-scenes": DigitScenesTask,
    "causal-lm": CausalLM,
    "notebook-gpt2": NotebookGPT2,
    "masked-lm": MaskedLM,
    "glue": Glue,
    "lra-listops": ListOps,
    "lra-text": Text,
    "lra-retrieval": Retrieval,
    "lra-image": Image,
    "lra-pathfinder": Pathfinder,
}
"""Tasks by name; add your own, and a configuration can name it."""


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """The task of this name with these options.

    Raises:
        ValueError, TypeError: no task has that name, or it has no such option, or an option cannot have that value.
    """
    check_known("task", [name], TASKS)
    factory = TASKS[name]
    parameters = inspect.signature(factory).parameters
    check_known(f"option of task {name!r}:", options, parameters)
    named = {key: one for key, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    missing = [key for key, one in named.items() if one.default is one.empty and key not in options]
    if missing:
        raise ValueError(f"task {name!r} needs the option {', '.join(missing)}")
    task = factory(**options)
    if not isinstance(task, Task):
        raise TypeError(f"TASKS[{name!r}] must make a Task (preconditioned_attention.lab.tasks.Task); got {task!r}")
    return task
