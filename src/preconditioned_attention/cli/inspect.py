"""``precond inspect``: the attention modules of a model, what a conversion does to them, their condition numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .._files import check_file_to_write, write_atomically
from ..selection import DEFAULT_INCLUDE, check_include

if TYPE_CHECKING:
    from ..lab.inspection import Inputs, Inspection
    from ..lab.reporting import Table


def inspect(
    model: Annotated[str, tyro.conf.Positional],
    *,
    checkpoint: Path | None = None,
    images: Path | None = None,
    text: Path | None = None,
    compare_init: bool = False,
    output: Path = Path("inspect.html"),
    include: tuple[str, ...] = DEFAULT_INCLUDE,
) -> None:
    """List every attention module of a timm or transformers model, run it once, and measure condition numbers per head.

    Nothing is downloaded: without a checkpoint the weights are random, without images or text the input is generated.

    Args:
        model: A name of timm, a model type of transformers, or a folder with config.json.
        checkpoint: Weights to load, a file of safetensors or torch.save.
        images: A folder with images to show the model.
        text: A text file to show the model.
        compare_init: Show random initialization beside the checkpoint.
        output: The page to write.
        include: The kinds of attention to look at: softmax, class_attention, pooling, channel, linear; or all.
    """
    if compare_init and checkpoint is None:
        raise ValueError("--compare-init shows random initialization beside a checkpoint: give --checkpoint too")
    check_file_to_write(output)
    from ..conversion import build_without_weights, plan_conversion
    from ..lab.inspection import check_size
    from ..lab.inspection.conversion_table import conversion_table
    from ..lab.reporting import print_table

    empty = build_without_weights(model)
    report = plan_conversion(empty, include=check_include("all" if include == ("all",) else include))
    if not report.entries:
        print(f"{model}: no module seems to compute attention.")
        return
    conversion = conversion_table(model, report)
    print_table(conversion)
    layers = [entry.path for entry in report.converted]
    if not layers:
        print(f"{model}: nothing to look into, for no attention of it would be converted.")
        return
    check_size(empty, model)
    wanted: list[Path | None] = [None] if checkpoint is None else [None, checkpoint] if compare_init else [checkpoint]
    inputs, inspections = _measure(model, wanted, layers, images, text)
    _show(model, inputs, inspections, conversion, output)


def _measure(
    name: str, weights: list[Path | None], layers: list[str], images: Path | None, text: Path | None
) -> tuple[Inputs, list[Inspection]]:
    from ..lab.inspection.runs import STAGES, inspect_weights

    with _progress(len(STAGES) * len(weights)) as on_stage:
        return inspect_weights(name, weights, layers=layers, images=images, text=text, on_stage=on_stage)


def _show(name: str, inputs: Inputs, inspections: list[Inspection], conversion: Table, output: Path) -> None:
    """Write the page and print the numbers per layer."""
    from .._environment import describe_environment
    from ..lab.inspection import build_page, layer_table, summary
    from ..lab.reporting import print_table, render_html

    words, environment = inputs.description, describe_environment()
    page = build_page(name, inspections, input_words=words, conversion=conversion, environment=environment)
    write_atomically(output, render_html(page))
    for inspection in inspections:
        print_table(layer_table(name, inspection))
        print(*summary(inspection), sep="\n", end="\n\n")
    print(f"Input: {words}.\nPage: {output}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on the error stream, where it does not mix with the results, that says what is being done."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        started = iter(range(total))
        yield lambda words: bar.update(task, completed=next(started), description=words)
