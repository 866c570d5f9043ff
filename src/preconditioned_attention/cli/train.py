"""``precond train``: one run of a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import tyro


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
    fsdp: bool = False,
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
        resume: Start the run, or continue it from its newest checkpoint if the output folder has one.
        overwrite: Replace the run in the output folder.
        fsdp: Divide parameters, gradients and optimizer state among the processes of torchrun or accelerate launch.
    """
    import torch

    from ..lab.training import train as run_training
    from .choice import choose_recipe, folder_name
    from .single_run import configure, describe

    loaded = choose_recipe(recipe, model=model, preset=preset, task_options=task_options)
    config = configure(loaded, arm=arm, seed=seed, learning_rate=learning_rate, steps=steps)
    folder = Path("runs") / f"{folder_name(loaded)}-{arm}-seed{config.seed}" if output is None else output
    result = run_training(config, folder, resume=resume, overwrite=overwrite, fsdp=fsdp)
    if int(os.environ.get("RANK", "0")) == 0:
        print(describe(result, arm, folder))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
