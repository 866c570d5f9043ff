import contextlib
import json
from pathlib import Path

import pytest

from preconditioned_attention.lab.training import WriteError
from preconditioned_attention.lab.training.metrics import MetricsLog, read_metrics


def write_steps(path: Path, count: int) -> MetricsLog:
    log = MetricsLog(path, [], write=True)
    for step in range(1, count + 1):
        log.add("step", {"step": step, "loss": 1 / (3 * step), "gradient_norm": 0.5, "seconds": 0.1})
    log.add("evaluation", {"step": count, "loss": 0.5})
    log.close()
    return log


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    log = write_steps(tmp_path / "metrics.jsonl", 5)
    assert read_metrics(tmp_path / "metrics.jsonl", last_step=5) == log.records
    assert log.of_kind("step")[2] == {"step": 3, "loss": 1 / 9, "gradient_norm": 0.5, "seconds": 0.1}
    assert log.of_kind("evaluation") == [{"step": 5, "loss": 0.5}]


def test_later_steps_and_a_torn_line_are_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 5)
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    records = read_metrics(path, last_step=3)
    assert [record["step"] for record in records] == [1, 2, 3]
    MetricsLog(path, records, write=True).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_missing_steps_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 3)
    with pytest.raises(ValueError, match="every step up to the checkpoint's, 4; it holds 3"):
        read_metrics(path, last_step=4)
    with pytest.raises(ValueError, match="it holds 0"):
        read_metrics(tmp_path / "none", last_step=1)
    assert read_metrics(tmp_path / "none", last_step=0) == []


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 3)
    path.write_text("oops\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1 of"):
        read_metrics(path, last_step=3)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", [], write=False)
    log.add("step", {"step": 1, "loss": 0.0})
    log.synchronize()
    log.close()
    assert log.of_kind("step") == [{"step": 1, "loss": 0.0}]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", [], write=True)
    log.close()
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as log._file:  # closing writes what is left
        with pytest.raises(WriteError, match="could not be written at step 1"):
            log.add("step", {"step": 1})
        raised = True
    assert raised
