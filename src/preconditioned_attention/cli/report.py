"""``precond report``: the report of runs from any folders and machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def report(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")],
    *,
    output: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Compare the runs in these folders, from any number of machines, and write the report.

    Runs that are missing are listed; runs that cannot be compared are refused.

    Args:
        folders: Folders of runs or of comparisons, or folders that hold such folders.
        output: The folder for the report; by default the comparison's folder if one is given, otherwise runs/report.
        overwrite: Replace the report in the output folder.
    """
    from ..lab.comparison import report_runs
    from ..lab.comparison.report import print_comparison

    print_comparison(report_runs(folders, output=output, overwrite=overwrite))
