import dataclasses
import errno
import math
from pathlib import Path

import pytest

from preconditioned_attention.diagnostics import MonitorConfig, Record, read_records
from preconditioned_attention.diagnostics.monitor_file import RecordFile
from preconditioned_attention.lab.training import ARMS, TrainConfig, WriteError, train
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.toy_task import toy_config
from tests.helpers.training_worker import Run, run_alone, run_on_two

VIT = digits_options(embed_dim=16, depth=2, num_heads=2, patch_size=4, attn_drop_rate=0.1)


def digits_config(**changes: object) -> TrainConfig:
    options = {"task": TASK, "task_options": VIT, "steps": 7, "learning_rate": 1e-3, "evaluate_every": 2}
    return toy_config(**{**options, "monitor": {"every": 3}, **changes})


@pytest.mark.parametrize("arm", ["plain", "row"])
def test_changes_no_number_that_is_trained(tmp_path: Path, arm: str) -> None:
    config = digits_config(precondition=ARMS[arm], accumulation_steps=2, ema_decay=0.9)
    watched = train(config, tmp_path / "watched", progress=False)
    unwatched = train(dataclasses.replace(config, monitor=None), tmp_path / "unwatched", progress=False)
    assert (watched.losses, watched.test) == (unwatched.losses, unwatched.test)
    assert unwatched.conditioning == []
    assert not (tmp_path / "unwatched" / "conditioning.csv").exists()
    records = read_records(tmp_path / "watched" / "conditioning.csv")
    assert [(r.step, r.layer, r.head) for r in records] == [
        (step, f"blocks.{block}.attn", head) for step in (1, 4, 7) for block in (0, 1) for head in (0, 1)
    ]
    assert [(row["step"], row["layer"]) for row in watched.conditioning] == [
        (step, f"blocks.{block}.attn") for step in (1, 4, 7) for block in (0, 1)
    ]
    for row in watched.conditioning:
        own = [r.kappa_before for r in records if (r.step, r.layer) == (row["step"], row["layer"])]
        assert row["kappa_before"] == pytest.approx(sum(own) / 2)
        assert 0 < row["entropy"] <= math.log(5)
    assert set(watched.model.state_dict()) == set(unwatched.model.state_dict())


def test_is_in_the_trackers(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = train(digits_config(), tmp_path, progress=False)
    (folder,) = {path.parent for path in (tmp_path / "tensorboard").rglob("*tfevents*")}
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    logged = events.Scalars("conditioning/blocks.1.attn/kappa_before")
    expected = [row for row in result.conditioning if row["layer"] == "blocks.1.attn"]
    assert [event.step for event in logged] == [row["step"] for row in expected] == [1, 4, 7]
    assert [event.value for event in logged] == pytest.approx([row["kappa_before"] for row in expected], rel=1e-6)


def test_a_resumed_run_has_the_records_of_one_that_was_not(tmp_path: Path) -> None:
    config = digits_config(steps=60, checkpoint_every=5)
    assert run_alone(config, tmp_path / "whole").ended_well
    Run(config, tmp_path / "killed").kill_at(12)
    again = run_alone(config, tmp_path / "killed", resume=True)
    assert again.ended_well, again.errors
    whole, killed = (read_records(tmp_path / name / "conditioning.csv") for name in ("whole", "killed"))
    assert len(whole) == 20 * 4
    assert repr(killed) == repr(whole)
    finished = train(config, tmp_path / "whole", resume=True, progress=False)
    assert len(finished.conditioning) == 20 * 2
    assert repr(read_records(tmp_path / "whole" / "conditioning.csv")) == repr(whole)


def test_processes_are_merged(tmp_path: Path) -> None:
    for run in run_on_two(digits_config(precondition={"gradient": "full"}), tmp_path / "run"):
        assert run.ended_well, run.errors
    records = read_records(tmp_path / "run" / "conditioning.csv")
    assert [(r.step, r.process) for r in records] == [
        (step, process) for step in (1, 4, 7) for process in (0, 1) for _ in range(4)
    ]
    first = [r for r in records if r.step == 1 and r.layer == "blocks.0.attn"]
    assert first[0].kappa_before != first[2].kappa_before, "each process has its own share of the batch"


def test_a_model_without_attention_leaves_the_old_run(tmp_path: Path) -> None:
    train(toy_config(), tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="no attention that can be observed"):
        train(toy_config(monitor=MonitorConfig()), tmp_path, overwrite=True, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_full_disk_stops_the_run_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, path = RecordFile.add, tmp_path / "conditioning.csv"

    def full_later(self: RecordFile, records: list[Record]) -> None:
        if records[0].step > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        add(self, records)

    monkeypatch.setattr(RecordFile, "add", full_later)
    with pytest.raises(WriteError, match=r"No space left.*conditioning\.csv"):
        train(digits_config(), tmp_path, progress=False)
    assert {record.step for record in read_records(path)} == {1}


def test_with_steps_scales_the_interval() -> None:
    assert digits_config(steps=400, monitor={"every": 40}).with_steps(100).monitor == MonitorConfig(every=10)
    assert digits_config(steps=400, monitor={}).with_steps(100).monitor == MonitorConfig()
    with pytest.raises(TypeError, match="monitor must be a MonitorConfig or None"):
        digits_config(monitor=3)
