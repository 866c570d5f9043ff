"""The GLUE score: several trials per task, the median of each task, and the mean of the medians."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..._checks import check_integer, check_known
from ..._files import read_json, write_atomically
from ..data.glue import GLUE
from ..recipes import load_recipe
from ..reporting import Table
from ..tasks import make_task
from ..training import TrainConfig, train
from ..training.claim import RunClaim
from ..training.folder import RunFolder
from .records import to_json
from .store import POLL_SECONDS, claimed

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

    Finished trials in ``output`` are read and unfinished ones resumed; several processes may share them. MNLI has two
    scores. All scores are written to ``output/glue.json``.

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
    configs = {task: _configure(task, str(pretrained), str(root)) for task in tasks}
    metrics = {task: make_task(config.task, config.task_options).metric for task, config in configs.items()}
    results = _do_trials(configs, metrics, trials, Path(output), progress=progress)
    scores: list[GlueScore] = []
    for task, metric in metrics.items():
        matched, mismatched = zip(*(results[task, seed] for seed in range(trials)), strict=True)
        scores.append(GlueScore(task, metric, matched))
        if task == "mnli":
            scores.append(GlueScore(MISMATCHED, metric, mismatched))
    content = {score.task: {**dataclasses.asdict(score), "median": score.median} for score in scores}
    with claimed(Path(output)):
        write_atomically(Path(output) / "glue.json", to_json(content, indent=2))
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


def _do_trials(
    configs: Mapping[str, TrainConfig], metrics: Mapping[str, str], trials: int, output: Path, *, progress: bool
) -> dict[tuple[str, int], tuple[float, float]]:
    """The metrics of every trial, by task and seed; those that other processes do are waited for."""
    left = [(task, seed) for task in configs for seed in range(trials)]
    results: dict[tuple[str, int], tuple[float, float]] = {}
    while True:
        for task, seed in left:
            config = dataclasses.replace(configs[task], seed=seed)
            result = _trial(config, output / f"{task}-seed{seed}", metrics[task], progress)
            if result is not None:
                results[task, seed] = result
        left = [trial for trial in left if trial not in results]
        if not left:
            return results
        time.sleep(POLL_SECONDS)


def _trial(config: TrainConfig, folder: Path, metric: str, progress: bool) -> tuple[float, float] | None:
    """The metric on both dev splits, which are the same split except for MNLI.

    None if another living process does the trial.
    """
    claim, run = RunClaim(folder), RunFolder(folder)
    if not claim.try_acquire():
        return None
    try:
        run.check(config, resume=True, overwrite=False)
        if not run.result.exists() or run.checkpoints.exists():
            train(config, folder, resume=True, progress=progress)
            shutil.rmtree(run.checkpoints)  # nothing is left to resume, and forty runs of them fill a disk
    finally:
        claim.release()
    result = read_json(run.result)
    values = [result[split].get(metric) if isinstance(result.get(split), dict) else None for split in SPLITS]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{run.result} must hold {metric} of {' and '.join(SPLITS)}; remove {folder} to run it again")
    return float(result["validation"][metric]), float(result["test"][metric])
