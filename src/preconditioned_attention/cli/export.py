"""``precond export``: write a trained model in the format of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def export(run: Annotated[Path, tyro.conf.Positional], *, output: Path) -> None:
    """Write the model of a finished run, and its tokenizer, into a folder.

    A GPT-2 becomes a folder of transformers: a plain one is read by from_pretrained, a preconditioned one by
    preconditioned_attention.conversion.from_pretrained. The folder of a crammed BERT is what precond glue starts from.

    Args:
        run: The folder of the run.
        output: The folder to write; it must be empty or not exist.
    """
    from ..lab.training import load_trained

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output {output} must be an empty folder or not exist")
    task, model = load_trained(run)
    task.export(model, output)
    print(f"Written: {output}")
