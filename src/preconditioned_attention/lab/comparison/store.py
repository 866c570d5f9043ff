"""``RunStore``: the run folders of a comparison, shared by every process that works on it."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..._files import write_atomically
from ..._version import __version__
from ..training.claim import RunClaim
from .folder import PLAN, RUN, written_files
from .machines import PACKAGE
from .plan import Plan, RunKey
from .plan_file import differences, plan_to_dict, read_plan
from .records import RunRecord, to_json
from .run_file import read_run, write_run

RUN_FOLDER = re.compile(r".+-seed\d+-lr.+")
POLL_SECONDS = 0.2


class RunStore:
    """The runs of ``plan`` in ``output``: a folder each, ``runs/<stem>/``, whose ``run.json`` is written when it ends.

    Reading keeps what it read; a file is read again when it has changed. Nothing is written before :meth:`begin`.

    Args:
        output: the comparison's folder.
        plan: what is compared.
        title: the comparison's title.
    """

    def __init__(self, output: Path, plan: Plan, *, title: str = "Comparison") -> None:
        self.output = output
        self.plan = plan
        self.title = title
        self.runs = output / "runs"
        self.stamps: dict[RunKey, tuple[str, int]] = {}
        """The file and time of modification of each record that was read."""
        self._records: dict[RunKey, RunRecord] = {}
        self._former_are_read = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the records: another process reads them when it needs them."""
        return {**self.__dict__, "stamps": {}, "_records": {}, "_former_are_read": False}

    def folder(self, key: RunKey) -> Path:
        """The folder of a run."""
        return self.runs / key.stem

    def begin(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder, check that it holds nothing or this comparison, and write ``comparison.json``.

        Args:
            resume: keep the runs of the same comparison.
            overwrite: remove the results in the folder.

        Raises:
            FileExistsError: the folder holds results and neither ``resume`` nor ``overwrite`` was given, or it holds
                another comparison. No file was changed.
            ClaimedError: ``overwrite``, and another process is writing a run. No file was changed.
            OSError: the folder cannot be written to.
            ValueError: both ``resume`` and ``overwrite``, or a file that cannot be read.
        """
        if resume and overwrite:
            raise ValueError("resume keeps what the folder holds and overwrite removes it: give one of them")
        self._check_writable()
        with claimed(self.output):
            found = self._found()
            if found and not (resume or overwrite):
                raise FileExistsError(
                    f"output: {self.output} holds results already ({found[0].relative_to(self.output)}); "
                    "resume=True continues them, overwrite=True removes them, another folder keeps them"
                )
            if overwrite:
                _remove(found)
            self._check_plan()
            self.refresh()
            self._check_records()
            write_atomically(self.output / PLAN, to_json(plan_to_dict(self.plan, self.title)))

    def read(self, key: RunKey) -> RunRecord | None:
        """The record of a run, as it is on the disk now; None if it has not ended.

        Raises:
            ValueError: its file is not a run's. OSError: it cannot be read.
        """
        self._read_former()
        path = self.folder(key) / RUN
        try:
            stamp = (str(path), path.stat().st_mtime_ns)
        except FileNotFoundError:
            if self.stamps.get(key, ("", 0))[0] == str(path):  # it was removed
                del self.stamps[key], self._records[key]
        else:
            if self.stamps.get(key) != stamp:
                self._keep(self._read(path), stamp)
        return self._records.get(key)

    def refresh(self) -> dict[RunKey, RunRecord]:
        """The records of all runs that have ended, as they are on the disk now, in the plan's order."""
        self._read_former()
        known = set(self.stamps.values())
        # Python 3.13 also finds links that lead nowhere.
        for path in sorted(path for path in self.runs.glob(f"*/{RUN}") if path.exists()):
            stamp = (str(path), path.stat().st_mtime_ns)
            if stamp not in known:
                self._keep(self._read(path), stamp)
        return {key: self._records[key] for key in self.plan.run_keys() if key in self._records}

    def write(self, record: RunRecord) -> None:
        """Write ``record`` into its run's folder."""
        folder = self.folder(record.key)
        folder.mkdir(parents=True, exist_ok=True)
        write_run(folder, record, self.plan, self.title)

    def _read(self, path: Path) -> RunRecord:
        """The record in a file.

        Raises:
            ValueError: it is not one, or that of the run of another folder. OSError: it cannot be read.
        """
        record, _ = read_run(path, plan=self.plan)
        if path.name == RUN and path.parent.name != record.key.stem:
            raise ValueError(
                f"{path} is the record of run {record.key.stem}, in a folder of another name; rename the folder to "
                f"{record.key.stem}, or remove it if it is a copy"
            )
        return record

    def _keep(self, record: RunRecord, stamp: tuple[str, int]) -> None:
        self._records[record.key] = record
        self.stamps[record.key] = stamp

    def _read_former(self) -> None:
        """Read the files that earlier versions wrote, one per run in ``runs/``, which do not change any more."""
        for path in () if self._former_are_read else sorted(self.runs.glob("*.json")):
            record = self._read(path)
            # Of a failed run under the former name of its arm, the other file is the repetition.
            if (record.key not in self._records or path.stem == record.key.stem) and not (
                self.folder(record.key) / RUN
            ).exists():
                self._keep(record, (str(path), path.stat().st_mtime_ns))
        self._former_are_read = True

    def _check_writable(self) -> None:
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.output), tempfile.TemporaryFile(dir=self.runs):
                pass
        except OSError as error:
            raise type(error)(
                error.errno, f"output: cannot write to this folder ({error.strerror}); choose another", str(self.output)
            ) from error

    def _found(self) -> list[Path]:
        """Every file and run folder of a comparison in the folder."""
        folders = [path for path in sorted(self.runs.iterdir()) if path.is_dir() and RUN_FOLDER.fullmatch(path.name)]
        return [*written_files(self.output), *sorted(self.runs.glob("*.json")), *folders]

    def _check_plan(self) -> None:
        path = self.output / PLAN
        words = differences(read_plan(path)[0], self.plan) if path.exists() else []
        if words:
            raise FileExistsError(_another(path, "; ".join(words)))

    def _check_records(self) -> None:
        """Raise unless the runs in the folder are runs of the plan, by this version of the method."""
        keys = set(self.plan.run_keys())
        for key, record in self._records.items():
            if key not in keys or record.description != self.plan.describe(key):
                words = "other arms, seeds, learning rates or settings"
                raise FileExistsError(_another(Path(self.stamps[key][0]), words))
            version = record.environment.get("packages", {}).get(PACKAGE, __version__)
            if record.finished and version != __version__:  # a failed run is repeated
                words = f"version of {PACKAGE} was {version}, is {__version__}"
                raise FileExistsError(_another(Path(self.stamps[key][0]), words))


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Alone in writing a comparison's own files in ``output``, beside the runs'; waits for a process that does.

    Raises:
        OSError: the folder cannot be written to.
    """
    claim = RunClaim(output)
    while not claim.try_acquire():
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        claim.release()


def _another(path: Path, words: str) -> str:
    return (
        f"output: {path} belongs to another comparison ({words}); "
        "choose another folder, or overwrite=True to remove what this one holds"
    )


def _remove(found: list[Path]) -> None:
    """Remove files and run folders, if no other process is writing one of the runs."""
    claims = [RunClaim(path) for path in found if path.is_dir() and not path.is_symlink()]
    with contextlib.ExitStack() as held:
        for claim in claims:
            held.enter_context(claim)
        for path in found:
            if path.is_file() or path.is_symlink():
                path.unlink()
    for claim in claims:
        shutil.rmtree(claim.folder)
