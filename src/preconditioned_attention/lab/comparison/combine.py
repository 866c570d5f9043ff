"""``report_runs``: the report of runs from any folders and machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..._extras import require
from ..training.folder import RunFolder
from .collection import collect_runs
from .folder import written_files
from .found_runs import is_comparison_folder, is_run_folder
from .report import Comparison, build_comparison, write_report
from .store import claimed

DEFAULT = Path("runs") / "report"


def report_runs(
    folders: Sequence[Path | str], *, output: Path | str | None = None, overwrite: bool = False
) -> Comparison:
    """Write the report of the runs in ``folders``, as far as they have ended, and return the comparison.

    The folders may come from any number of machines. A run that ``train`` did outside a comparison counts too. Runs
    that are missing from the grid are listed, and a learning rate with one of them is not chosen.

    Args:
        folders: each a run's folder, a comparison's folder, or a folder of such folders.
        output: the folder for the report; by default the comparison's folder if one is given, otherwise
            ``runs/report``.
        overwrite: replace a report in ``output``. That of a comparison's own runs is always replaced.

    Raises:
        ValueError: a folder holds no run, a file is not what it should be, or two runs cannot be compared: the message
            names both folders and what differs.
        FairnessError: runs of one seed had different initial weights or random states.
        FileExistsError: ``output`` holds another report, run or comparison. OSError: it cannot be written to.
        ImportError: the extra ``train`` is missing.
    """
    for module in ("scipy.stats", "matplotlib.figure", "jinja2", "rich.table"):
        require(module, extra="train")
    if not folders:
        raise ValueError("folders must name at least one folder of a run or a comparison; got none")
    paths = [Path(folder) for folder in folders]
    chosen = _choose_output(paths) if output is None else Path(output)
    _check_output(chosen, paths, overwrite=overwrite)
    found = collect_runs(paths)
    comparison = build_comparison(found.plan, found.records, title=found.title, output=chosen)
    with claimed(chosen):
        write_report(comparison)
    return comparison


def _choose_output(folders: Sequence[Path]) -> Path:
    return folders[0] if len(folders) == 1 and is_comparison_folder(folders[0]) else DEFAULT


def _check_output(output: Path, folders: Sequence[Path], *, overwrite: bool) -> None:
    """Raise if the report would replace something that it may not."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"output: {output} is a file; choose a folder")
    if is_run_folder(output):
        raise FileExistsError(
            f"output: {output} holds a run ({RunFolder(output).report.name} is its own report); choose another folder"
        )
    own = len(folders) == 1 and folders[0].resolve() == output.resolve()
    if is_comparison_folder(output) and not own:
        raise FileExistsError(
            f"output: {output} holds a comparison of its own; choose another folder, or report that one alone"
        )
    written = written_files(output)
    if written and not own and not overwrite:
        raise FileExistsError(
            f"output: {output} holds results already ({written[0].name}); --overwrite replaces them, another folder "
            "keeps them"
        )
