"""``report.html`` of a finished run."""

from __future__ import annotations

import json

from ..._files import write_atomically
from ..reporting import Figures, Listing, Page, Section, Table, format_number, render_html
from .errors import WriteError
from .folder import RunFolder, flatten
from .result import TrainResult


def write_report(result: TrainResult, folder: RunFolder) -> None:
    """Write ``report.html``, with the pictures embedded, and the pictures beside it.

    Raises:
        WriteError: a file cannot be written.
    """
    try:
        for name, picture in result.pictures.items():
            folder.pictures.mkdir(exist_ok=True)
            (folder.pictures / f"{name}.png").write_bytes(picture.png)
        write_atomically(folder.report, render_html(build_run_page(result)))
    except OSError as error:
        raise WriteError(f"the report of the run could not be written: {error}") from error


def build_run_page(result: TrainResult) -> Page:
    """Metrics, pictures, settings."""
    config = result.config
    arm = "plain" if config.precondition is None else f"preconditioned, gradient {config.precondition.config.gradient}"
    sections = [Section("Metrics", (_metrics_table(result),))]
    if result.pictures:
        sections.append(Section("Pictures", (Figures(tuple(result.pictures.values())),)))
    if result.samples:
        sections.append(Section("Samples of the model", (Listing(tuple(result.samples.items())),)))
    sections.append(Section("Settings", (_settings_table(result),), folded=True))
    return Page(
        title=f"{config.task}: one run",
        subtitle=f"{arm}, seed {config.seed}, {config.steps} steps, {1000 * result.seconds_per_step:.0f} ms per step",
        sections=tuple(sections),
        footer="Written by precond train. Every number is in result.json and metrics.jsonl beside this page.",
    )


def _metrics_table(result: TrainResult) -> Table:
    names = list({**result.validation, **result.test})
    rows = [
        (name, *(format_number(split.get(name), 4) for split in (result.validation, result.test))) for name in names
    ]
    return Table(title=f"Weights after step {result.step}", columns=("metric", "validation", "test"), rows=tuple(rows))


def _settings_table(result: TrainResult) -> Table:
    settings = {**flatten(result.config.to_dict()), **flatten({"data": result.data}), **flatten(result.environment)}
    rows = tuple((name, value if isinstance(value, str) else json.dumps(value)) for name, value in settings.items())
    return Table(title="Configuration, data and environment", columns=("setting", "value"), rows=rows, text_columns=2)
