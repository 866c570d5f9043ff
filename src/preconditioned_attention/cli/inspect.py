"""``precond inspect``: what a conversion would do to a model, and how well conditioned its heads are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.progress import Progress

from .._environment import describe_environment
from .._files import write_atomically
from ..config import PreconditionConfig
from ..conversion import ConversionEntry, ConversionReport, build_model, build_without_weights, survey
from ..lab.inspection import (
    Inputs,
    Inspection,
    build_page,
    layer_table,
    load_checkpoint,
    make_inputs,
    measure_model,
    refuse_large,
    summary,
)
from ..lab.reporting import Table, print_table, render_html

SEED = 0  # of random weights and of generated input


def inspect(
    model: Annotated[str, tyro.conf.Positional],
    *,
    checkpoint: Path | None = None,
    images: Path | None = None,
    text: Path | None = None,
    compare_init: bool = False,
    output: Path = Path("inspect.html"),
    class_attention: bool = False,
    pooling: bool = False,
    linear: bool = False,
) -> None:
    """List every attention in a model of timm or transformers, run it once, and show how its heads are conditioned.

    Nothing is downloaded: without a checkpoint the weights are random, without images or text the input is generated.

    Args:
        model: A name of timm, a model type of transformers, or a folder with config.json.
        checkpoint: Weights to load, a file of safetensors or torch.save.
        images: A folder with images to show the model.
        text: A text file to show the model.
        compare_init: Show random initialisation beside the checkpoint.
        output: The page to write.
        class_attention: Ask for attention whose only query is the class token.
        pooling: Ask for attention pooling.
        linear: Ask for linear attention that has a per-head output.
    """
    if compare_init and checkpoint is None:
        raise ValueError("--compare-init shows random initialisation beside a checkpoint: give --checkpoint too")
    config = PreconditionConfig(class_attention=class_attention, pooling=pooling, linear=linear)
    empty = build_without_weights(model)
    report = survey(empty, config)
    if not report.entries:
        print(f"{model}: no module seems to compute attention.")
        return
    conversion = _table(model, report)
    print_table(conversion)
    layers = [entry.path for entry in report.converted]
    if not layers:
        print(f"{model}: nothing to look into, for no attention of it would be converted.")
        return
    refuse_large(empty, model)
    inputs, inspections = _look(model, layers, checkpoint, images, text, compare_init)
    environment = describe_environment()
    page = build_page(
        model, inspections, input_words=inputs.description, conversion=conversion, environment=environment
    )
    write_atomically(output, render_html(page))
    for inspection in inspections:
        print_table(layer_table(model, inspection))
        print(*summary(inspection), sep="\n", end="\n\n")
    print(f"Input: {inputs.description}.\nPage: {output}")


def _look(
    name: str, layers: list[str], checkpoint: Path | None, images: Path | None, text: Path | None, compare_init: bool
) -> tuple[Inputs, list[Inspection]]:
    """Build, load and run the model once per kind of weights."""
    inspections = []
    wanted = [None] if checkpoint is None else [None, checkpoint] if compare_init else [checkpoint]
    with _progress(3 * len(wanted)) as progress:
        for weights in wanted:
            progress("building the model")
            torch.manual_seed(SEED)
            model = build_model(name)
            words = f"random initialisation, seed {SEED}" if weights is None else load_checkpoint(model, weights)
            progress("preparing the input")
            inputs = make_inputs(model, name, images=images, text=text, seed=SEED)
            progress("running it and decomposing every head")
            inspections.append(measure_model(model, inputs, layers=layers, weights=words))
    return inputs, inspections


@contextmanager
def _progress(total: int) -> Iterator:
    """Yield what advances a bar on the error stream, where it does not mix with the results."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        started = iter(range(total))
        yield lambda words: bar.update(task, completed=next(started), description=words)


def _table(name: str, report: ConversionReport) -> Table:
    """Modules that differ in their path only share a line."""
    alike: dict[tuple[str, ...], list[ConversionEntry]] = defaultdict(list)
    for entry in report.entries:
        alike[entry.cells()[1:]].append(entry)
    return Table(
        title=name,
        columns=("modules", "class", "mechanism", "heads", "head dim", "status", "reason"),
        rows=tuple((_paths(entries), *cells) for cells, entries in alike.items()),
        text_columns=7,
        note=f"{len(report.converted)} of {len(report.entries)} attention modules would be converted.",
    )


def _paths(entries: list[ConversionEntry]) -> str:
    first, *others = (entry.path or "(the model itself)" for entry in entries)
    return first if not others else f"{first} and {len(others)} more"
