"""``precond inspect``: what a conversion would do to a model, without its weights."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated

import tyro

from ..config import PreconditionConfig
from ..conversion import ConversionEntry, ConversionReport, build_without_weights, survey
from ..reporting import Table, print_table


def inspect(
    model: Annotated[str, tyro.conf.Positional],
    *,
    class_attention: bool = False,
    pooling: bool = False,
    linear: bool = False,
) -> None:
    """Build a model of timm or transformers without weights and list every attention in it.

    Args:
        model: A name of timm, a model type of transformers, or a folder with config.json.
        class_attention: Ask for attention whose only query is the class token.
        pooling: Ask for attention pooling.
        linear: Ask for linear attention that has a per-head output.
    """
    config = PreconditionConfig(class_attention=class_attention, pooling=pooling, linear=linear)
    report = survey(build_without_weights(model), config)
    if not report.entries:
        print(f"{model}: no module seems to compute attention.")
        return
    print_table(_table(model, report))


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
