"""Finding runs: in a run's folder, a comparison's folder, or a folder of such folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .folder import PLAN, RUN
from .plan import Plan, RunKey
from .plan_file import read_plan
from .records import RunRecord, to_json
from .run_file import read_run
from .train_folder import is_train_folder, read_train_folder

DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """A run in a folder.

    Args:
        folder: where it is.
        description: everything that determines it.
        comparison: title, metric, higher_is_better and baselines of its comparison.
        record: None if it has not ended.
    """

    folder: Path
    description: dict[str, Any]
    comparison: dict[str, Any]
    record: RunRecord | None

    @property
    def key(self) -> RunKey:
        """Which run it is."""
        return RunKey(self.description["seed"], self.description["learning_rate"], self.description["arm"])


def order_key(run: FoundRun) -> tuple[RunKey, str, str]:
    """An order that does not depend on the places of the folders, unless two hold the same run."""
    return run.key, "" if run.record is None else to_json(run.record.to_dict()), str(run.folder)


@dataclass
class FoundFolders:
    """What folders hold: plans and runs, and folders of ``train`` without a record, which are read last."""

    plans: dict[Path, tuple[Plan, str]] = field(default_factory=dict)
    runs: list[FoundRun] = field(default_factory=list)
    trained: list[Path] = field(default_factory=list)

    def count(self) -> int:
        """How many plans, runs and folders there are."""
        return len(self.plans) + len(self.runs) + len(self.trained)


def find_runs(folders: Sequence[Path]) -> FoundFolders:
    """Every run and plan in ``folders``; each counts once, however often it is named.

    Raises:
        ValueError: a folder holds no run, or a file is not what it should be.
        OSError: a file or folder cannot be read.
    """
    found, seen = FoundFolders(), set[Path]()
    for folder in folders:
        before = found.count()
        _search(folder, found, seen, depth=DEPTH)
        if found.count() == before and folder.resolve() not in seen:
            raise ValueError(_nothing_in(folder))
    return found


def read_trained(folder: Path, plan: Plan | None) -> FoundRun:
    """The run in a folder of ``train`` that is not one of a comparison, with the name of its arm in ``plan``.

    Raises:
        ValueError, TypeError, OSError: a file of the run is not what it should be, or cannot be read.
    """
    run = read_train_folder(folder, plan)
    comparison = {
        "title": f"Preconditioned attention on {run.description['settings'].get('task')}",
        "metric": run.description["metric"],
        "higher_is_better": run.higher_is_better,
        "baselines": {},
    }
    return FoundRun(folder=folder, description=run.description, comparison=comparison, record=run.record)


def describe_comparison(plan: Plan, title: str) -> dict[str, Any]:
    """Title, metric, direction and baselines, as a run's file repeats them."""
    names = ("metric", "higher_is_better", "baselines")
    return {"title": title, **{name: getattr(plan, name) for name in names}}


def is_comparison_folder(folder: Path) -> bool:
    """Whether a comparison writes its runs there, and not only other commands, whose folders are in ``runs/`` too."""
    runs = folder / "runs"
    return (folder / PLAN).exists() or any(runs.glob("*.json")) or any(runs.glob(f"*/{RUN}"))


def is_run_folder(folder: Path) -> bool:
    """Whether there is a run in it."""
    return (folder / RUN).exists() or is_train_folder(folder)


def _nothing_in(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist; give folders of runs or comparisons"
    if not folder.is_dir():
        return f"{folder} must be a folder of a run or a comparison; it is a file"
    return f"{folder} holds no run: expected a folder with {RUN}, with config.yaml, or with {PLAN} and runs/"


def _search(folder: Path, found: FoundFolders, seen: set[Path], *, depth: int) -> None:
    """Add what is in ``folder``; every folder counts once, however often it is named."""
    if not folder.is_dir() or folder.resolve() in seen:
        return
    if is_run_folder(folder):
        seen.add(folder.resolve())
        _add_run(folder, found, None)
    elif is_comparison_folder(folder):
        seen.add(folder.resolve())
        _add_comparison(folder, found, seen)
    elif depth:
        for child in sorted(folder.iterdir()):
            _search(child, found, seen, depth=depth - 1)


def _add_comparison(folder: Path, found: FoundFolders, seen: set[Path]) -> None:
    path, plan = folder / PLAN, None
    if path.exists():
        plan, title = read_plan(path)
        found.plans[path] = plan, title
    for file in sorted((folder / "runs").glob("*.json")):
        _add_former(file, found, path)
    for child in sorted((folder / "runs").glob("*/")):
        if is_run_folder(child) and child.resolve() not in seen:
            seen.add(child.resolve())
            _add_run(child, found, plan)


def _add_former(file: Path, found: FoundFolders, path: Path) -> None:
    """A run in a file that an earlier version wrote."""
    if path not in found.plans:
        raise ValueError(
            f"{file} was written by an earlier version, and {path} is missing; write it with precond compare --resume"
        )
    plan, title = found.plans[path]
    record, _ = read_run(file, plan=plan)
    comparison = describe_comparison(plan, title)
    found.runs.append(FoundRun(folder=file, description=record.description, comparison=comparison, record=record))


def _add_run(folder: Path, found: FoundFolders, plan: Plan | None) -> None:
    path = folder / RUN
    if not path.exists():
        found.trained.append(folder)
        return
    record, comparison = read_run(path)
    assert comparison is not None, "only files of earlier versions, which have other names, lack it"
    found.runs.append(FoundRun(folder=folder, description=record.description, comparison=comparison, record=record))
