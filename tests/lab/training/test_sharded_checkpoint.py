import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import transformers

from preconditioned_attention.cli import main
from preconditioned_attention.conversion import from_pretrained
from preconditioned_attention.lab.training import ARMS, load_trained, train
from preconditioned_attention.lab.training.checkpoint import complete_checkpoints
from tests.helpers.sharded_runs import BY_ACCELERATE, BY_FLAG, TOY, assert_same_run, vit_config
from tests.helpers.toy_task import FEATURES, toy_config
from tests.helpers.training_worker import Run, losses, records, run_alone, run_on, run_on_two, start_on

EVERYTHING = {**TOY, "checkpoint_every": 5, "task_options": {"dropout": 0.3, "batch_norm": True}}


def cut(run: Path, step: int) -> None:
    """What a kill after that step's checkpoint leaves."""
    for newer, path in complete_checkpoints(run / "checkpoints").items():
        if newer > step:
            shutil.rmtree(path)
    for name in ("model.safetensors", "result.json"):
        (run / name).unlink()


def assert_identical(one: Path, other: Path) -> None:
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert losses(one) == losses(other)
    assert records(one, "evaluation") == records(other, "evaluation")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run alone, sharded and not: they compute the same numbers in the same order."""
    folder = tmp_path_factory.mktemp("runs")
    for name, fsdp in (("plain", False), ("sharded", True)):
        train(toy_config(**EVERYTHING), folder / name, progress=False, fsdp=fsdp)
    assert_identical(folder / "plain", folder / "sharded")
    return folder


@pytest.mark.parametrize("began", ["plain", "sharded"])
@pytest.mark.parametrize("goes_on", ["plain", "sharded"])
def test_either_continues_either_bit_for_bit(began: str, goes_on: str, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / began, tmp_path / "run")
    cut(tmp_path / "run", 5)
    train(toy_config(**EVERYTHING), tmp_path / "run", progress=False, resume=True, fsdp=goes_on == "sharded")
    assert_identical(runs / "plain", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000012"
    assert (newest / ".metadata").exists() == (goes_on == "sharded")


def test_two_processes_continue_bit_for_bit_and_one_within_rounding(tmp_path: Path) -> None:
    config = toy_config(**{**EVERYTHING, "task_options": {}})
    run_on(2, config, tmp_path / "whole", fsdp=True)
    for name in ("two", "one"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        cut(tmp_path / name, 5)
    run_on(2, config, tmp_path / "two", fsdp=True, resume=True)
    assert_identical(tmp_path / "whole", tmp_path / "two")
    train(config, tmp_path / "one", progress=False, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "one")
    (tmp_path / "two" / "checkpoints" / "step-00000012" / "__1_0.distcp").unlink()
    for run in run_on_two(config, tmp_path / "two", fsdp=True, resume=True):  # both end; none waits for the other
        assert "step-00000012 cannot be read: " in run.errors
        assert "__1_0.distcp" in run.errors


def saved_states(run: Path) -> list[torch.Tensor]:
    newest = list(complete_checkpoints(run / "checkpoints").values())[-1]
    saved = torch.load(newest / "optimizer.bin", weights_only=True)["state"]
    return [value for values in saved.values() for value in values.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("began", [False, True])
def test_states_of_other_shapes(began: bool, tmp_path: Path) -> None:
    config = toy_config(task="factored-toy", checkpoint_every=5)
    whole = train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "run", progress=False, fsdp=began)
    cut(tmp_path / "run", 5)
    shapes = [value.shape for value in saved_states(tmp_path / "whole") if value.ndim > 0]
    assert (1, FEATURES) in shapes, "no state has another shape than its parameter, so this test says nothing"
    again = train(config, tmp_path / "run", progress=False, resume=True, fsdp=not began)
    assert again.losses == pytest.approx(whole.losses, abs=1e-6)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other": lambda path: path.write_bytes(b"\x00\xff" * 400),
    "missing": lambda path: path.unlink(),
}
FILES = [("sharded", name) for name in (".metadata", "__0_0.distcp")]
FILES += [("plain", name) for name in ("model", "average", "best")]
FILES += [("plain", name) for name in ("optimizer.bin", "scheduler.bin")]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("kind", "name"), FILES)
@pytest.mark.parametrize("fsdp", [False, True], ids=["unsharded", "sharded"])
def test_a_damaged_file_is_named_and_stops_the_run(
    fsdp: bool, kind: str, name: str, damage: str, runs: Path, tmp_path: Path
) -> None:
    if (name, damage) == ("best", "missing"):
        pytest.skip("the records tell that it is missing: test_loop.py")
    shutil.copytree(runs / kind, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000012"
    DAMAGES[damage](newest / (name if "." in name else f"{name}.safetensors"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(OSError, match=r"checkpoint .*step-00000012 cannot be read: .+; remove it to resume") as caught:
        train(toy_config(**EVERYTHING), tmp_path / "run", progress=False, resume=True, fsdp=fsdp)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + 3 * len(str(tmp_path))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    if damage == "missing":  # what the message says
        shutil.rmtree(newest)
        result = train(toy_config(**EVERYTHING), tmp_path / "run", progress=False, resume=True, fsdp=fsdp)
        assert result.losses == losses(runs / "plain")


def test_a_full_disk_leaves_earlier_checkpoints(tmp_path: Path) -> None:
    config = toy_config(steps=40, checkpoint_every=7, task_options={"hidden": 3000, "pause": 0.02})
    output = tmp_path / "full"
    Run(config, output, fsdp=True).kill_at(9)
    kept = complete_checkpoints(output / "checkpoints")
    assert list(kept) == [7]
    before = {path.name: path.read_bytes() for path in kept[7].iterdir()}
    failed = run_alone(config, output, resume=True, file_size_limit=200_000, fsdp=True)
    assert not failed.ended_well
    assert "step-00000014 could not be written (" in failed.errors
    assert f"the newest complete one is {kept[7]}" in failed.errors
    assert [path.name for path in (output / "checkpoints").iterdir()] == [kept[7].name]
    assert {path.name: path.read_bytes() for path in kept[7].iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("options", [BY_FLAG, BY_ACCELERATE], ids=["flag", "accelerate"])
@pytest.mark.parametrize("world", [2, 4])
def test_killed_and_resumed_on_other_numbers_of_processes(world: int, options: dict, tmp_path: Path) -> None:
    config = vit_config(checkpoint_every=5, keep_best=True, evaluate_every=4)
    run_on(1, config, tmp_path / "one")
    run_on(world, config, tmp_path / "whole", **options)
    assert_same_run(tmp_path / "one", tmp_path / "whole")
    kill_one(start_on(world, config, tmp_path / "killed", **options), random.Random(world).randrange(8, 25))
    continued = {"same": (world, options), "four": (4, options), "two": (2, BY_FLAG), "ddp": (2, {}), "one": (1, {})}
    for name, (processes, by) in continued.items():
        shutil.copytree(tmp_path / "killed", tmp_path / f"killed-{name}")
        run_on(processes, config, tmp_path / f"killed-{name}", resume=True, **by)
        assert_same_run(tmp_path / "one", tmp_path / f"killed-{name}")
    assert_identical(tmp_path / "whole", tmp_path / "killed-same")
    _, model = load_trained(tmp_path / "killed-two")
    assert model.training is False


def kill_one(processes: list[Run], step: int) -> None:
    """SIGKILL for one at that step; the others, which a launcher would end, wait for it."""
    try:
        processes[-1].kill_at(step)
        time.sleep(0.5)
    finally:
        for run in processes:
            run.process.kill()
            run.process.join()


@pytest.mark.parametrize("began", [False, True])
def test_tied_weights_are_continued_and_exported(began: bool, tmp_path: Path) -> None:
    options = {"vocab_size": 300, "context": 16, "n_layer": 2, "n_head": 2, "n_embd": 8}
    config = toy_config(task="causal-lm", task_options=options, steps=4, checkpoint_every=2, precondition=ARMS["row"])
    whole = train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "run", progress=False, fsdp=began)
    cut(tmp_path / "run", 2)
    again = train(config, tmp_path / "run", progress=False, resume=True, fsdp=not began)
    assert again.losses == whole.losses
    assert again.samples == whole.samples
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "model")]) == 0
    loaded = from_pretrained(transformers.AutoModelForCausalLM, tmp_path / "model")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    torch.testing.assert_close(loaded.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [BY_FLAG, BY_ACCELERATE], ids=["flag", "accelerate"])
def test_sigterm_for_one_process_saves_the_parts_of_all(options: dict, tmp_path: Path) -> None:
    config = toy_config(**{**TOY, "steps": 40, "task_options": {"pause": 0.05}})
    run_on(2, config, tmp_path / "whole", **options)
    processes = start_on(2, config, tmp_path / "run", **options)
    try:
        processes[1].signal_at(9, signal.SIGTERM)
        for run in processes:
            assert "SIGTERM after step" in run.end().errors
    finally:
        for run in processes:
            run.process.kill()
    (step,) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    assert 9 <= step < 40
    run_on(2, config, tmp_path / "run", resume=True, **options)
    assert_identical(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_states_of_other_shapes_on_two_processes(tmp_path: Path) -> None:
    config = toy_config(task="factored-toy", checkpoint_every=10, steps=20)
    run_on(1, config, tmp_path / "one")
    run_on(2, config, tmp_path / "two", fsdp=True)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    for name, processes in (("two", 2), ("one", 1)):
        shutil.copytree(tmp_path / "two", tmp_path / f"again-{name}")
        cut(tmp_path / f"again-{name}", 10)
        run_on(processes, config, tmp_path / f"again-{name}", resume=True, fsdp=processes > 1)
        assert_same_run(tmp_path / "one", tmp_path / f"again-{name}")
