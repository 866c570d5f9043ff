import random
from pathlib import Path

import pytest

from preconditioned_attention.lab.training import ARMS, WriteError, train
from preconditioned_attention.lab.training import checkpoint as checkpoint_module
from preconditioned_attention.lab.training.checkpoint import complete_checkpoints
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.toy_task import toy_config
from tests.helpers.training_worker import Run, losses, records, run_alone

EVERYTHING = {
    "steps": 40,
    "accumulation_steps": 2,
    "ema_decay": 0.9,
    "clip_norm": 1.0,
    "warmup_steps": 5,
    "evaluate_every": 3,
    "keep_best": True,
    "checkpoint_every": 7,  # an epoch has 5 steps: checkpoints lie within epochs
    "task_options": {"dropout": 0.3, "batch_norm": True, "pause": 0.02},
}


def assert_same_run(one: Path, other: Path) -> None:
    final = Path("checkpoints", "step-00000040")
    for name in ("model.safetensors", *(final / part for part in ("model.safetensors", "average.safetensors"))):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert losses(one) == losses(other)
    assert len(losses(one)) == 40
    assert records(one, "evaluation") == records(other, "evaluation")


def test_killed_and_resumed_ends_bit_identical(tmp_path: Path) -> None:
    config = toy_config(**EVERYTHING)
    assert run_alone(config, tmp_path / "whole").ended_well
    first, second = sorted(random.Random(5).sample(range(8, 38), 2))
    Run(config, tmp_path / "killed").kill_at(first)
    Run(config, tmp_path / "killed", resume=True).kill_at(second)
    last = run_alone(config, tmp_path / "killed", resume=True)
    assert last.ended_well, last.errors
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    best = [tmp_path / name / "checkpoints" / "step-00000040" / "best.safetensors" for name in ("whole", "killed")]
    assert best[0].read_bytes() == best[1].read_bytes()


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    config = toy_config(**EVERYTHING)
    Run(config, tmp_path / "killed").kill_at(3)
    assert not complete_checkpoints(tmp_path / "killed" / "checkpoints")
    assert run_alone(config, tmp_path / "killed", resume=True).ended_well
    assert run_alone(config, tmp_path / "whole").ended_well
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("arm", ["plain", "row"])
def test_killed_vision_transformer_ends_bit_identical(tmp_path: Path, arm: str) -> None:
    options = digits_options(embed_dim=16, depth=2, num_heads=2, proj_drop_rate=0.1, attn_drop_rate=0.1)
    config = toy_config(
        task=TASK,
        task_options=options,
        steps=40,
        batch_size=32,
        accumulation_steps=2,
        ema_decay=0.9,
        checkpoint_every=9,
        precondition=ARMS[arm],
    )
    assert run_alone(config, tmp_path / "whole").ended_well
    Run(config, tmp_path / "killed").kill_at(random.Random(arm).randrange(10, 30))
    assert run_alone(config, tmp_path / "killed", resume=True).ended_well
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_full_disk_leaves_earlier_checkpoints(tmp_path: Path) -> None:
    options = {"steps": 40, "ema_decay": 0.9, "checkpoint_every": 7, "task_options": {"hidden": 3000, "pause": 0.02}}
    config, output = toy_config(**options), tmp_path / "full"
    Run(config, output).kill_at(9)
    kept = complete_checkpoints(output / "checkpoints")
    assert list(kept) == [7]
    before = {path.name: path.read_bytes() for path in kept[7].iterdir()}
    # The weights (about 120 kB) fit under the limit; the optimizer's state, twice as large, does not.
    failed = run_alone(config, output, resume=True, file_size_limit=200_000)
    assert not failed.ended_well
    assert "step-00000014 could not be written" in failed.errors
    assert f"the newest complete one is {kept[7]}" in failed.errors
    assert [path.name for path in (output / "checkpoints").iterdir()] == [kept[7].name]
    assert {path.name: path.read_bytes() for path in kept[7].iterdir()} == before
    assert run_alone(config, output, resume=True).ended_well
    assert run_alone(config, tmp_path / "whole").ended_well
    assert_same_run(tmp_path / "whole", output)


def test_keeps_the_newest(tmp_path: Path) -> None:
    train(toy_config(steps=11, checkpoint_every=2, keep_checkpoints=3), tmp_path / "run", progress=False)
    assert list(complete_checkpoints(tmp_path / "run" / "checkpoints")) == [8, 10, 11]


def test_an_unfinished_checkpoint_is_never_taken_for_a_complete_one(tmp_path: Path) -> None:
    config, checkpoints = toy_config(checkpoint_every=5), tmp_path / "run" / "checkpoints"
    whole = train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "run", progress=False)
    complete_checkpoints(checkpoints)[12].rename(checkpoints / ".writing-step-00000012")  # killed before the rename
    (checkpoints / ".writing-step-00000011").mkdir()
    assert list(complete_checkpoints(checkpoints)) == [10]
    assert train(config, tmp_path / "run", resume=True, progress=False).losses == whole.losses
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000010", "step-00000012"]


def test_failure_while_taking_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "publish", no_space)
    with pytest.raises(WriteError, match="no complete one yet"):
        train(toy_config(), tmp_path / "run", progress=False)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_unreadable_checkpoint_is_named(tmp_path: Path) -> None:
    config = toy_config(checkpoint_every=5)
    train(config, tmp_path / "run", progress=False)
    newest = tmp_path / "run" / "checkpoints" / "step-00000012"
    (newest / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(OSError, match=r"step-00000012 cannot be read.*remove it"):
        train(config, tmp_path / "run", resume=True, progress=False)
