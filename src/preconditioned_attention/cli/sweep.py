"""``precond sweep``: what a conversion does to every attention of the libraries that are installed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, get_args

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..lab.census import sweep as sweeping
from ..lab.census.catalog import installed_libraries
from ..lab.reporting import Table, print_table

_OUTCOMES: tuple[str, ...] = get_args(sweeping.Outcome)


def sweep(
    libraries: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    jobs: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 2,
) -> None:
    """Convert every attention of every library that is installed, without weights, and print what became of it.

    The exit code is 1 if any attention is unknown, or softmax attention of timm or torchvision is not converted.

    Args:
        libraries: The libraries to sweep; all that are installed if none is named.
        jobs: How many processes share the work.
    """
    installed = installed_libraries()
    chosen = libraries or tuple(name for name, there in installed.items() if there)
    missing = [name for name, there in installed.items() if not there]
    work = [subject for library in chosen for subject in sweeping.subjects(library)]
    columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("sweep", total=len(work))
        findings = sweeping.sweep(work, jobs=jobs, on_progress=lambda: progress.advance(task))
    print_table(_counts(findings))
    print_table(_reasons(findings))
    if missing:
        print(f"Not installed, and not swept: {', '.join(missing)}.")
    if not sweeping.is_complete(findings):
        sys.exit(1)


def _counts(findings: Iterable[sweeping.Finding]) -> Table:
    """A line for everything that is counted."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for finding in findings:
        counts.setdefault((finding.library, finding.what), Counter())[finding.outcome] += 1
    return Table(
        title="What was converted",
        columns=("library", "what", "all", *_OUTCOMES),
        rows=tuple(
            (*key, str(own.total()), *(str(own[outcome]) for outcome in _OUTCOMES)) for key, own in counts.items()
        ),
        text_columns=2,
    )


def _reasons(findings: Iterable[sweeping.Finding]) -> Table:
    """Why what was not converted exactly was not; what shares a reason shares a line, but for what is wrong."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        if finding.reason:
            own_line = f" ({finding.name})" if finding.outcome in ("unknown", "failed") else ""
            key = (finding.library, finding.outcome, finding.reason + own_line)
            alike.setdefault(key, []).append(finding.name)
    return Table(
        title="Definitions and reasons",
        columns=("library", "outcome", "reason", "number", "for example"),
        rows=tuple((*key, str(len(names)), names[0]) for key, names in alike.items()),
        text_columns=3,
    )
