import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from preconditioned_attention.diagnostics import Record, merge_records, read_records
from preconditioned_attention.diagnostics.monitor_file import RecordFile, process_path


def record(step: int = 1, process: int = 0, **changes: object) -> Record:
    return Record(
        step=step, process=process, layer='blocks.0, "attn"', call=0, sample=2, head=1, rows=17, head_dim=8,
        dtype="float32", kappa_before=1 / 3, kappa_after=math.nan, at_least_before=0.1, at_least_after=1e300,
        singular_before=False, singular_after=True, spread_before=0.1, spread_after=0.0, common_direction=0.5,
        entropy=1e-17, kappa_jacobian=math.nan, not_available="",
    )._replace(**changes)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "conditioning.csv"
    file = RecordFile(path)
    assert read_records(path) == []
    file.add([record(1), record(2)])
    file.add([record(3, not_available="line\nbreak")])
    assert repr(read_records(path)) == repr([record(1), record(2), record(3, not_available="line\nbreak")])
    file.close()
    again = RecordFile(path, read_records(path)[:1])
    again.add([record(4)])
    again.close()
    assert [one.step for one in read_records(path)] == [1, 4]


def write_until_killed(path: Path) -> None:
    file = RecordFile(path)
    for step in range(1, 10**9):
        file.add([record(step)] * 5)


def test_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "conditioning.csv"
    process = multiprocessing.get_context("fork").Process(target=write_until_killed, args=(path,))
    process.start()
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 20_000):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    steps = [one.step for one in read_records(path)]
    assert steps == sorted(steps)
    assert steps[-1] == math.ceil(len(steps) / 5) > 10, "every record up to the last one that was begun"


def test_an_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "conditioning.csv"
    RecordFile(path, [record(1), record(2)]).close()
    path.write_text(path.read_text()[:-7])
    assert [one.step for one in read_records(path)] == [1]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "conditioning.csv"
    RecordFile(path, [record(1)]).close()
    good = path.read_text()
    for text, message in (
        ("", "its first line must name"),
        ("a,b\n1,2\n", "its first line must name"),
        (good + "1,2\n", "line 3 of .* has 2 cells"),
        (good.replace("blocks", "blocks").replace("17,8", "many,8"), "line 2 of .* is not a record"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_records(path)


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "conditioning.csv"
    file = RecordFile(path, [record(1)])
    file.close()
    with open("/dev/full", "a") as full:
        file._file = full
        with pytest.raises(OSError, match="the monitor's records could not be written: No space left"):
            file.add([record(2)])
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is left in the buffer has somewhere to go
    assert [one.step for one in read_records(path)] == [1]


def test_processes_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "conditioning.csv"
    assert process_path(path, 0, 1) == path
    files = [process_path(path, process, 2) for process in (0, 1)]
    for process, file in enumerate(files):
        RecordFile(file, [record(step, process) for step in (1, 11)]).close()
    assert merge_records(reversed(files), path) == 4
    assert [(one.step, one.process) for one in read_records(path)] == [(1, 0), (1, 1), (11, 0), (11, 1)]
    with pytest.raises(ValueError, match="recorded twice"):
        merge_records([files[0], files[0]], path)
    with pytest.raises(ValueError, match="at least one file"):
        merge_records([], path)
    assert len(read_records(path)) == 4
