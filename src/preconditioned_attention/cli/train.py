"""``precond train``: one run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..lab.recipes import Recipe
from ..lab.tasks import Baselined, make_task
from ..lab.training import TrainConfig, TrainResult
from ..lab.training import train as run_training
from .choice import choose_arms, choose_recipe, folder_name


def train(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    *,
    model: str | None = None,
    preset: str | None = None,
    task_options: tuple[str, ...] = (),
    arm: str = "plain",
    output: Path | None = None,
    seed: int | None = None,
    learning_rate: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train one arm of a recipe and evaluate it on the validation and the test split.

    Args:
        recipe: The name of a recipe, or the path of a YAML file.
        model: Picks RECIPE/MODEL among recipes that come as a family, such as digits with --model xcit.
        preset: Picks RECIPE-PRESET, such as the size for two CPU cores of listops with --preset cpu.
        task_options: Replace options of the recipe's task, such as root=/data/imagenet num_classes=100.
        arm: plain, row, row-stopgrad, or an arm of the recipe's comparison.
        output: The folder to write; by default runs/RECIPE-ARM-seedN.
        seed: Replaces the recipe's seed.
        learning_rate: Replaces the recipe's learning rate.
        steps: Replaces the recipe's number of steps; warm-up and intervals scale with it.
        resume: Continue the run in the output folder from its newest checkpoint.
        overwrite: Replace the run in the output folder.
    """
    loaded = choose_recipe(recipe, model=model, preset=preset, task_options=task_options)
    config = _configure(loaded, arm=arm, seed=seed, learning_rate=learning_rate, steps=steps)
    folder = Path("runs") / f"{folder_name(loaded)}-{arm}-seed{config.seed}" if output is None else output
    result = run_training(config, folder, resume=resume, overwrite=overwrite)
    if int(os.environ.get("RANK", "0")) == 0:
        print(_summary(result, arm, folder))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _configure(
    recipe: Recipe, *, arm: str, seed: int | None, learning_rate: float | None, steps: int | None
) -> TrainConfig:
    precondition = choose_arms(recipe, (arm,))[arm]
    given = {"seed": seed, "learning_rate": learning_rate, "precondition": precondition}
    replaced = {name: value for name, value in given.items() if value is not None}
    options = {**recipe.train.task_options, **recipe.compare.variants.get(arm, {})}
    config = dataclasses.replace(recipe.train, task_options=options, **replaced)  # type: ignore[arg-type]
    return config if steps is None else config.with_steps(steps)


def _summary(result: TrainResult, arm: str, folder: Path) -> str:
    lines = [f"{result.config.task}, arm {arm}, seed {result.config.seed}, {result.config.steps} steps"]
    for split, metrics in (("validation", result.validation), ("test", result.test)):
        lines.append(f"  {split:<11}" + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    task = make_task(result.config.task, result.config.task_options)
    if isinstance(task, Baselined):
        scores = "  ".join(f"{name} {value:.4f}" for name, value in task.baselines().items())
        lines.append(f"  test {task.metric} without a model: {scores}")
    lines.append(f"  {1000 * result.seconds_per_step:.1f} ms per step; everything is in {folder}")
    return "\n".join(lines)
