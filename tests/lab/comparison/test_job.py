import dataclasses
import errno
import pickle
from pathlib import Path

import pytest

from preconditioned_attention.lab.comparison import FairnessError, Plan, Prepare, RunKey
from preconditioned_attention.lab.comparison.job import Job, do_run
from preconditioned_attention.lab.comparison.store import RunStore
from preconditioned_attention.lab.training import WriteError
from preconditioned_attention.lab.training.claim import ClaimLostError
from tests.helpers.claim_holder import holding
from tests.helpers.synthetic_runs import ARMS, run, tiny_model

PLAN = Plan(arms=ARMS, seeds=(0, 1), learning_rates=(1e-3,))
KEY = RunKey(0, 1e-3, "row")


def begin(folder: Path, chosen_run=run, *, resume: bool = True) -> Job:
    return Job.begin(chosen_run, RunStore(folder, PLAN), resume=resume, overwrite=False)


def never(prepare: Prepare, seed: int, learning_rate: float):
    raise AssertionError("it ran")


def fails(prepare: Prepare, seed: int, learning_rate: float):
    raise LookupError("no such data")


def test_a_pickled_job_does_a_run_once(tmp_path):
    job = begin(tmp_path)
    record = do_run(pickle.loads(pickle.dumps(job)), KEY)
    assert record.finished
    assert record.environment["packages"]["torch"]
    assert record.started.endswith("+00:00")
    assert do_run(dataclasses.replace(job, run=never), KEY) == record


def test_a_run_that_another_process_does_is_left_to_it_and_taken_over_if_it_dies(tmp_path):
    job = begin(tmp_path)
    with holding(job.store.folder(KEY)) as other:
        assert do_run(dataclasses.replace(job, run=never), KEY) is None
        other.kill()
        other.wait()
        assert do_run(job, KEY).finished


def test_a_run_has_its_folder_to_itself_and_keeps_what_is_in_it(tmp_path):
    seen = []

    def keeping(prepare: Prepare, seed: int, learning_rate: float):
        seen.append(sorted(path.name for path in prepare.folder.iterdir()))
        (prepare.folder / "state").write_text("x")
        if len(seen) == 1:
            raise KeyboardInterrupt
        return run(prepare, seed, learning_rate)

    job = begin(tmp_path, keeping)
    with pytest.raises(KeyboardInterrupt):
        do_run(job, KEY)
    assert do_run(job, KEY).finished
    assert [[name for name in names if name != ".claim"] for names in seen] == [[], ["state"]]
    assert sorted(path.name for path in job.store.folder(KEY).iterdir()) == ["run.json", "state"]


def test_a_failure_is_repeated_once_per_invocation(tmp_path):
    first = begin(tmp_path, fails)
    assert not do_run(first, KEY).finished
    assert not do_run(dataclasses.replace(first, run=never), KEY).finished
    second, third = begin(tmp_path, fails), begin(tmp_path, never)
    assert do_run(second, KEY).reason == "LookupError: no such data"
    assert do_run(third, KEY).reason == "LookupError: no such data", "the second has repeated it already"
    assert do_run(begin(tmp_path), KEY).finished


def test_a_full_disk_loses_nothing_of_a_run(tmp_path, monkeypatch):
    def keeping(prepare: Prepare, seed: int, learning_rate: float):
        (prepare.folder / "state").write_text("x")
        return run(prepare, seed, learning_rate)

    def full(path: Path) -> None:
        if path.name.startswith(".run.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    job = begin(tmp_path, keeping)
    monkeypatch.setattr("preconditioned_attention._files._flush_to_disk", full)
    with pytest.raises(OSError, match=r"row-seed0-lr0\.001/run\.json could not be written: No space left"):
        do_run(job, KEY)
    assert [path.name for path in job.store.folder(KEY).iterdir()] == ["state"]
    monkeypatch.undo()
    assert do_run(job, KEY).finished


def test_a_disk_that_is_full_during_a_run_is_no_failure_of_its_arm(tmp_path):
    def unwritable(prepare: Prepare, seed: int, learning_rate: float):
        raise WriteError("metrics.jsonl could not be written at step 7: No space left on device")

    job = begin(tmp_path, unwritable)
    with pytest.raises(WriteError, match="at step 7"):
        do_run(job, KEY)
    assert job.record(KEY) is None
    assert not (job.store.folder(KEY) / ".claim").exists()


def test_a_run_that_was_taken_over_writes_nothing(tmp_path, monkeypatch):
    def lost(claim: object) -> None:
        raise ClaimLostError("taken over")

    job = begin(tmp_path)
    monkeypatch.setattr("preconditioned_attention.lab.training.claim.RunClaim.check", lost)
    assert do_run(job, KEY) is None
    assert job.record(KEY) is None

    def loses(prepare: Prepare, seed: int, learning_rate: float):
        raise ClaimLostError("taken over")

    assert do_run(dataclasses.replace(job, run=loses), KEY) is None
    assert job.record(KEY) is None


def test_unequal_starts_are_seen_across_processes_and_both_folders_are_named(tmp_path):
    def other_model(prepare: Prepare, seed: int, learning_rate: float):
        model = tiny_model()
        model.linear1.bias.data += 1
        prepare(model)
        return {"validation": 1.0, "test": 1.0}

    assert do_run(begin(tmp_path), KEY).finished
    with pytest.raises(FairnessError, match="different initial weights") as caught:
        do_run(begin(tmp_path, other_model), RunKey(0, 1e-3, "plain"))
    for name in ("plain-seed0-lr0.001", "row-seed0-lr0.001"):
        assert str(tmp_path / "runs" / name) in str(caught.value)
    assert not (tmp_path / "runs" / "plain-seed0-lr0.001" / "run.json").exists()
