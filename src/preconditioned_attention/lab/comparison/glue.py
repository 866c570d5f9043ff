"""The GLUE score: several trials per task, the median of each task, and the mean of the medians."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..._checks import check_integer, check_known
from ..._files import read_json, write_atomically
from ..data.glue import GLUE
from ..recipes import load_recipe
from ..reporting import Table
from ..tasks import make_task
from ..training import TrainConfig, train
from ..training.folder import RunFolder

EPOCHS = 5
MOST_TRIALS = 1000
SPLITS = ("validation", "test")
MISMATCHED = "mnli, mismatched"


@dataclass(frozen=True)
class GlueScore:
    """A task's metric on the dev split in every trial."""

    task: str
    metric: str
    trials: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the trials."""
        return statistics.median(self.trials)


def score_glue(
    pretrained: Path | str,
    *,
    root: Path | str,
    output: Path | str,
    tasks: Sequence[str] = tuple(GLUE),
    trials: int = 5,
    progress: bool = True,
) -> list[GlueScore]:
    """Fine-tune a pretrained model on tasks of GLUE with the published settings, several times each.

    Finished trials in ``output`` are read and unfinished ones resumed. MNLI has two scores. All scores are written to
    ``output/glue.json``.

    Args:
        pretrained: a folder that ``precond export`` wrote for a run of ``masked-lm``.
        root: the folder with GLUE.
        output: the folder for the runs.
        tasks: names in :data:`preconditioned_attention.lab.data.glue.GLUE`.
        trials: seeds per task, from 0.
        progress: show a live line per run on standard error.

    Raises:
        ValueError, OSError: data or model are missing or invalid, or ``output`` holds other runs.
    """
    check_known("task of GLUE", tasks, GLUE)
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks must be at least one, each once; got {list(tasks)}")
    check_integer("trials", trials, minimum=1, maximum=MOST_TRIALS)
    scores: list[GlueScore] = []
    for task in tasks:
        config = _configure(task, str(pretrained), str(root))
        metric = make_task(config.task, config.task_options).metric
        runs = [
            _trial(dataclasses.replace(config, seed=seed), Path(output) / f"{task}-seed{seed}", metric, progress)
            for seed in range(trials)
        ]
        matched, mismatched = zip(*runs, strict=True)
        scores.append(GlueScore(task, metric, matched))
        if task == "mnli":
            scores.append(GlueScore(MISMATCHED, metric, mismatched))
    content = {score.task: {**dataclasses.asdict(score), "median": score.median} for score in scores}
    write_atomically(Path(output) / "glue.json", json.dumps(content, indent=2) + "\n")
    return scores


def glue_table(scores: Sequence[GlueScore]) -> Table:
    """Medians in percent, their spread, and the mean of the medians."""
    rows = [(score.task, score.metric, *map(_percent, _row(score))) for score in scores]
    mean = statistics.fmean(score.median for score in scores)
    complete = len(scores) == len(GLUE) + 1
    return Table(
        title=f"GLUE, dev splits, {len(scores[0].trials)} trials",
        columns=("task", "metric", "median", "lowest", "highest"),
        rows=(*rows, ("mean of the medians", "", _percent(mean), "", "")),
        text_columns=2,
        note="" if complete else "Not all tasks: the mean is not the score on GLUE.",
    )


def _row(score: GlueScore) -> Iterator[float]:
    yield from (score.median, min(score.trials), max(score.trials))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _configure(task: str, pretrained: str, root: str) -> TrainConfig:
    """The recipe with as many steps as five epochs of the data take."""
    config = load_recipe(f"glue/{task}").train
    options = {**config.task_options, "pretrained": pretrained, "root": root}
    examples = len(make_task(config.task, options).datasets().train)  # type: ignore[arg-type]
    steps = EPOCHS * (examples // config.batch_size)
    if not steps:
        raise ValueError(f"{task} in {root} must have at least {config.batch_size} training pairs; got {examples}")
    return dataclasses.replace(config.with_steps(steps), task_options=options)


def _trial(config: TrainConfig, folder: Path, metric: str, progress: bool) -> tuple[float, float]:
    """The metric on both dev splits, which are the same split except for MNLI."""
    run = RunFolder(folder)
    begun = run.config.exists()
    if begun:
        run.check(config, resume=True, overwrite=False)
    if not run.result.exists():
        train(config, folder, resume=begun, progress=progress)
        shutil.rmtree(run.checkpoints)  # nothing is left to resume, and forty runs of them fill a disk
    result = read_json(run.result)
    values = [result[split].get(metric) if isinstance(result.get(split), dict) else None for split in SPLITS]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{run.result} must hold {metric} of {' and '.join(SPLITS)}; remove {folder} to run it again")
    return float(result["validation"][metric]), float(result["test"][metric])
