"""``precond sweep``: convert every attention class of the libraries that are installed."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from .._checks import check_integer
from ._progress import progress

MOST_JOBS = 256


def sweep(
    libraries: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    jobs: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 2,
) -> None:
    """Convert every attention class of the installed libraries, without weights, and print the outcomes.

    The exit code is 1 if a class is unknown, or softmax attention of timm or torchvision is not converted.

    Args:
        libraries: The libraries to sweep; all that are installed if none is named.
        jobs: The number of worker processes.
    """
    from ..lab.census import catalog, tables
    from ..lab.census import sweep as sweeping
    from ..lab.reporting import print_table

    check_integer("jobs", jobs, minimum=1, maximum=MOST_JOBS)
    installed = catalog.installed_libraries()
    chosen = libraries or tuple(name for name, there in installed.items() if there)
    missing = [name for name, there in installed.items() if not there]
    work = [subject for library in chosen for subject in sweeping.subjects(library)]
    with progress("sweep", len(work)) as advance:
        findings = sweeping.sweep(work, jobs=jobs, on_progress=advance)
    print_table(tables.count_table(findings))
    print_table(tables.reason_table(findings))
    if missing:
        print(f"Not installed, and not swept: {', '.join(missing)}.")
    if not sweeping.is_complete(findings):
        sys.exit(1)
