"""``precond compare``: train every arm, seed and learning rate of a recipe and compare the arms."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


def compare(
    recipe: Annotated[str, tyro.conf.Positional],
    *,
    model: str | None = None,
    preset: str | None = None,
    task_options: tuple[str, ...] = (),
    arms: tuple[str, ...] | None = None,
    output: Path | None = None,
    seeds: tuple[int, ...] | None = None,
    learning_rates: tuple[float, ...] | None = None,
    steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    slice: str | None = None,
    fsdp: bool = False,
) -> None:
    """Train with and without preconditioning from identical weights and batches, and report the differences.

    Args:
        recipe: The name of a recipe, or the path of a YAML file.
        model: Picks RECIPE/MODEL among recipes that come as a family, such as digits with --model xcit.
        preset: Picks RECIPE-PRESET, such as the size for two CPU cores of listops with --preset cpu.
        task_options: Replace options of the recipe's task, such as root=/data/imagenet num_classes=100.
        arms: The arms, by default the recipe's; plain must be among them, the others are compared with it.
        output: The folder to write; by default runs/compare-RECIPE.
        seeds: Replace the recipe's seeds.
        learning_rates: Replace the recipe's grid; each arm's rate is chosen on the validation split.
        steps: Replaces the recipe's number of steps; warm-up and intervals scale with it.
        resume: Keep the finished runs in the output folder and do the others.
        overwrite: Replace the results in the output folder.
        workers: How many processes share the runs on this machine, by default one per GPU, or one per core.
        ray: Do the runs on a Ray cluster, auto or HOST:PORT; all its nodes must see the output folder.
        slice: Do a part of the runs, such as 1/3, as one job of an array; with --resume others may use the folder.
        fsdp: Divide parameters, gradients and optimizer state among the processes of torchrun.
    """
    import torch

    from ..lab.comparison import compare as run_comparison
    from ..lab.comparison import task_run, task_settings
    from ..lab.comparison.scheduling.slice import parse_slice
    from ..lab.tasks import make_task
    from .choice import choose_arms, choose_recipe, folder_name

    part = None if slice is None else parse_slice(slice)
    loaded = choose_recipe(recipe, model=model, preset=preset, task_options=task_options)
    chosen = choose_arms(loaded, arms)
    section = loaded.compare
    section = section if seeds is None else dataclasses.replace(section, seeds=seeds)
    section = section if learning_rates is None else dataclasses.replace(section, learning_rates=learning_rates)
    config = loaded.train if steps is None else loaded.train.with_steps(steps)
    task = make_task(config.task, config.task_options)
    run_comparison(
        task_run(config, fsdp=fsdp),
        arms=chosen,
        seeds=section.seeds,
        learning_rates=section.learning_rates,
        output=Path("runs") / f"compare-{folder_name(loaded)}" if output is None else output,
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        title=f"Preconditioned attention on {loaded.name}",
        settings=task_settings(config),
        variants={name: options for name, options in loaded.compare.variants.items() if name in chosen},
        baselines=task.baselines(),
        resume=resume,
        overwrite=overwrite,
        workers=workers,
        ray_address=ray,
        part=part,
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
