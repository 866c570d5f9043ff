"""``precond glue``: fine-tune a pretrained model on GLUE and report the medians."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ..lab.data.glue import GLUE


def glue(
    pretrained: Annotated[Path, tyro.conf.Positional],
    *,
    root: Path,
    output: Path = Path("runs/glue"),
    tasks: tuple[str, ...] = tuple(GLUE),
    trials: int = 5,
) -> None:
    """Fine-tune on every task with the published settings, and print the median of the trials.

    Finished trials in the output folder are kept, so a command that was stopped continues.

    Args:
        pretrained: A folder that precond export wrote for a run of a recipe such as bert/crammed.
        root: The folder that holds GLUE: the release's CoLA/train.tsv and so on, or the hub's cola/train-*.parquet.
        output: The folder for the runs and glue.json.
        tasks: The tasks.
        trials: The number of seeds per task.
    """
    from ..lab.comparison.glue import glue_table, score_glue
    from ..lab.reporting import print_table

    print_table(glue_table(score_glue(pretrained, root=root, output=output, tasks=tasks, trials=trials)))
    print(f"Every trial: {output / 'glue.json'}")
