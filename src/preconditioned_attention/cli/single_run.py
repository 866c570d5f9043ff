"""The configuration of one run, and its result in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..lab.recipes import Recipe
from ..lab.tasks import make_task
from ..lab.training import TrainConfig, TrainResult
from .choice import choose_arms


def configure(
    recipe: Recipe, *, arm: str, seed: int | None, learning_rate: float | None, steps: int | None
) -> TrainConfig:
    """The configuration of the recipe's run of ``arm``; what is not None replaces the recipe's."""
    precondition = choose_arms(recipe, (arm,))[arm]
    given = {"seed": seed, "learning_rate": learning_rate, "precondition": precondition}
    replaced = {name: value for name, value in given.items() if value is not None}
    options = {**recipe.train.task_options, **recipe.compare.variants.get(arm, {})}
    config = dataclasses.replace(recipe.train, task_options=options, **replaced)  # type: ignore[arg-type]
    return config if steps is None else config.with_steps(steps)


def describe(result: TrainResult, arm: str, folder: Path) -> str:
    """A few lines for the terminal: metrics of both splits, time per step, the folder."""
    lines = [f"{result.config.task}, arm {arm}, seed {result.config.seed}, {result.config.steps} steps"]
    for split, metrics in (("validation", result.validation), ("test", result.test)):
        lines.append(f"  {split:<11}" + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    task = make_task(result.config.task, result.config.task_options)
    scores = "  ".join(f"{name} {value:.4f}" for name, value in task.baselines().items())
    if scores:
        lines.append(f"  test {task.metric} without a model: {scores}")
    lines.append(f"  {1000 * result.seconds_per_step:.1f} ms per step; everything is in {folder}")
    return "\n".join(lines)
