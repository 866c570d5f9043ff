"""The record of a run that ``train`` did outside a comparison, from the files in its folder."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tasks import TASKS, make_task
from ..training.arms import ARMS, Arm
from ..training.config import TrainConfig
from ..training.finished import read_result
from ..training.folder import RunFolder
from ..training.metrics import read_metrics
from ..training.resuming import evaluated_steps
from .metrics import SAMPLES, RunMetrics
from .plan import REFERENCE, Plan, RunKey
from .read_json import check_entry
from .records import RunRecord

# Set by the comparison, or without effect on the results.
NOT_SETTINGS = ("seed", "learning_rate", "precondition", "checkpoint_every", "keep_checkpoints", "monitor", "workers")


@dataclass(frozen=True)
class TrainedRun:
    """What a comparison needs to know of a run that ``train`` did.

    Args:
        description: everything that determines it, as ``Plan.describe`` gives it.
        higher_is_better: whether more of its metric is better.
        record: None if it has not ended.
    """

    description: dict[str, Any]
    higher_is_better: bool
    record: RunRecord | None

    @property
    def key(self) -> RunKey:
        """Which run of a comparison it is."""
        return RunKey(self.description["seed"], self.description["learning_rate"], self.description["arm"])


def is_train_folder(path: Path) -> bool:
    """Whether ``train`` began a run there."""
    return RunFolder(path).config.exists()


def read_train_folder(path: Path, plan: Plan | None) -> TrainedRun:
    """The run in a folder of ``train``, without the condition numbers at initialization and at the end.

    Args:
        path: the folder.
        plan: a comparison; if the run is one of it, it gets the name of its arm there.

    Raises:
        ValueError, TypeError: a file of the run is missing, or holds something else; the message names it.
        OSError: a file cannot be read.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    try:
        metric, higher_is_better = _metric(config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder.config}: {error}") from error
    result = read_result(folder.result) if folder.result.exists() else None
    settings = plain_settings(config, {} if result is None else result.get("data", {}))
    description = _describe(config, settings, metric, plan)
    record = None if result is None else _record(folder, config, description, result)
    return TrainedRun(description, higher_is_better, record)


def plain_settings(config: TrainConfig, data: Any) -> dict[str, Any]:
    """The options of ``config``, and the task's data, that determine the results, as JSON reads them back."""
    settings = {name: value for name, value in config.to_dict().items() if name not in NOT_SETTINGS}
    found: dict[str, Any] = json.loads(json.dumps({**settings, "data": data} if data else settings))
    return found


def _metric(config: TrainConfig) -> tuple[str, bool]:
    """The metric's name, and whether more of it is better; the data are not read if the class knows."""
    found: Any = TASKS.get(config.task)
    if found is None or not isinstance(found.metric, str):
        found = make_task(config.task, config.task_options)
    return found.metric, found.higher_is_better


def _describe(config: TrainConfig, settings: dict[str, Any], metric: str, plan: Plan | None) -> dict[str, Any]:
    """As ``plan`` describes the run, if it is one of it."""
    for name, arm in plan.arms.items() if plan is not None else ():
        assert plan is not None
        variant = plan.variants.get(name, {})
        expected = plan.plain_settings
        expected["task_options"] = {**expected.get("task_options", {}), **variant}
        if arm == config.precondition and settings == expected and metric == plan.metric:
            return plan.describe(RunKey(config.seed, config.learning_rate, name))
    arm = config.precondition
    return {
        "arm": _arm_name(arm, {} if plan is None else plan.arms),
        "seed": config.seed,
        "learning_rate": config.learning_rate,
        "config": None if arm is None else arm.to_dict(),
        "metric": metric,
        "settings": settings,
    }


def _arm_name(arm: Arm | None, arms: Any) -> str:
    """The name among ``arms``, or the usual one, or one made of the options."""
    if arm is None:
        return REFERENCE
    for known in (arms, ARMS):
        for name, other in known.items():
            if other == arm:
                return str(name)
    usual = Arm().to_dict()
    options = [f"{name}-{value}" for name, value in arm.to_dict().items() if value != usual[name]]
    return "".join(letter if letter.isalnum() or letter in "_.+-" else "-" for letter in "-".join(["row", *options]))


def _record(folder: RunFolder, config: TrainConfig, description: dict[str, Any], result: dict[str, Any]) -> RunRecord:
    try:
        hashes = [check_entry({"initial_weights": "", "random_state": "", **result}, name, str) for name in _HASHES]
        if not all(hashes):
            raise ValueError(
                "it has no hashes of the run's initial weights and random state, as those of earlier versions; train "
                "it again"
            )
        records = read_metrics(folder.metrics, last_step=config.steps, evaluated=evaluated_steps(config))
        steps = [row for row in records if row["kind"] == "step"]
        return RunRecord(
            key=RunKey(config.seed, config.learning_rate, description["arm"]),
            description=description,
            status="finished",
            metrics=_metrics(result, description["metric"], [row["loss"] for row in steps]),
            weights=hashes[:1],
            random_states=hashes[1:],
            seconds=math.fsum(row["seconds"] for row in steps),
            environment=check_entry(result, "environment", dict),
        )
    except (ValueError, TypeError, KeyError) as error:
        message = str(error)
        raise ValueError(message if str(folder.path) in message else f"{folder.result}: {message}") from error


_HASHES = ("initial_weights", "random_state")


def _metrics(result: dict[str, Any], metric: str, losses: list[float]) -> RunMetrics:
    splits = {name: check_entry(result, name, dict) for name in ("validation", "test")}
    samples = {SAMPLES: result["samples"]} if result.get("samples") else {}
    metrics = RunMetrics.from_returned(
        {
            **{name: check_entry(values, metric, (float, int)) for name, values in splits.items()},
            "losses": losses,
            "seconds_per_step": check_entry(result, "seconds_per_step", (float, int)),
            "evaluations": check_entry(result, "evaluations", list),
            "extra": {**{f"{name}_metrics": values for name, values in splits.items()}, **samples},
        },
        metric=metric,
    )
    if (reason := metrics.not_finite()) is not None:
        raise ValueError(reason)
    return metrics
