"""The names of the files that a comparison writes into its folder and into those of its runs."""

from __future__ import annotations

from pathlib import Path

PLAN = "comparison.json"
RUN = "run.json"  # in the folder of each run
SUMMARY = "summary.json"
RUNS = "runs.json.gz"
REPORT = "report.html"
PLOT_PREFIX = "plot-"
PICTURE_PREFIX = "picture-"
FORMER_RESULTS = "results.json"  # summary and runs in one file, written by earlier versions


def plot_file(name: str) -> str:
    """The file of a plot of the comparison's numbers."""
    return f"{PLOT_PREFIX}{name}.png"


def picture_file(name: str, arm: str) -> str:
    """The file of a picture that a run of ``arm`` returned."""
    return f"{PICTURE_PREFIX}{name}-{arm}.png"


def written_files(output: Path) -> list[Path]:
    """The existing files of these names, also of earlier versions; without those in ``runs/``."""
    named = [output / name for name in (PLAN, SUMMARY, RUNS, REPORT, FORMER_RESULTS)]
    pictures = [path for prefix in (PLOT_PREFIX, PICTURE_PREFIX) for path in sorted(output.glob(f"{prefix}*.png"))]
    return [*(path for path in named if path.exists()), *pictures]
