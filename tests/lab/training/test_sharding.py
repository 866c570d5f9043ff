from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.tensor import DTensor

from preconditioned_attention import is_preconditioned
from preconditioned_attention.lab.tasks import TASKS
from preconditioned_attention.lab.training import ARMS, load_trained, train
from preconditioned_attention.lab.training.sharding import process_group, repeated_blocks
from tests.helpers.sharded_runs import BY_ACCELERATE, BY_FLAG, CONFIGURED, TOY, assert_same_run, vit_config
from tests.helpers.toy_task import Toy, toy_config
from tests.helpers.training_worker import losses, run_alone, run_on


def test_a_run_on_two_processes_equals_one(tmp_path: Path) -> None:
    """The metrics of 13 validation examples too, of which one process has a batch more than the other."""
    config = toy_config(**TOY)
    one = train(config, tmp_path / "one", progress=False)
    run_on(2, config, tmp_path / "two", fsdp=True)
    assert one.losses[-1] < one.losses[0]
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two" / "checkpoints" / "step-00000012" / ".metadata").exists()
    task, model = load_trained(tmp_path / "two")
    batch = task.example_batch()
    torch.testing.assert_close(model(*batch), one.model(*batch), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, BY_FLAG, BY_ACCELERATE], ids=["ddp", "flag", "accelerate"])
@pytest.mark.parametrize("world", [2, 4])
def test_a_converted_model_on_several_processes_equals_one(world: int, options: dict, tmp_path: Path) -> None:
    run_on(1, vit_config(), tmp_path / "one")
    run_on(world, vit_config(), tmp_path / "several", **options)
    assert_same_run(tmp_path / "one", tmp_path / "several")
    assert is_preconditioned(load_trained(tmp_path / "several")[1])


@pytest.mark.slow
@pytest.mark.parametrize("options", [BY_FLAG, BY_ACCELERATE], ids=["flag", "accelerate"])
def test_in_bfloat16_a_sharded_run_equals_an_unsharded_one(options: dict, tmp_path: Path) -> None:
    config = vit_config(precision="bfloat16", monitor=None)
    run_on(2, config, tmp_path / "unsharded")
    run_on(2, config, tmp_path / "sharded", **options)
    assert_same_run(tmp_path / "unsharded", tmp_path / "sharded")
    assert run_alone(config, tmp_path / "one").ended_well
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "one"), abs=2e-3)
    run_on(2, vit_config(monitor=None), tmp_path / "float32")
    assert losses(tmp_path / "float32") != pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
def test_replicas_of_shards(tmp_path: Path) -> None:
    axes = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}
    axes |= {f"PARALLELISM_CONFIG_DP_{name}_SIZE": "2" for name in ("REPLICATE", "SHARD")}
    run_on(1, vit_config(), tmp_path / "one")
    options = {"environment": {**CONFIGURED, **axes}, "present_as_accelerator": True}
    run_on(4, vit_config(), tmp_path / "four", **options)
    assert_same_run(tmp_path / "one", tmp_path / "four")


@pytest.mark.parametrize("sharded", [False, True])
def test_running_means_are_those_of_the_first_process_everywhere(sharded: bool, tmp_path: Path) -> None:
    """A finished run that is resumed has them from the checkpoint, and then the same metrics."""
    config = toy_config(task_options={"batch_norm": True}, steps=3)
    run_on(2, config, tmp_path / "run", fsdp=sharded)
    first = (tmp_path / "run" / "result.json").read_text()
    run_on(2, config, tmp_path / "run", fsdp=sharded, resume=True)
    assert '"test"' in first
    assert (tmp_path / "run" / "result.json").read_text().split('"environment"')[0] == first.split('"environment"')[0]


def test_alone_the_result_is_an_ordinary_model_and_no_group_stays(tmp_path: Path) -> None:
    plain = train(toy_config(**TOY), tmp_path / "plain", progress=False)
    for name in ("one", "again"):
        result = train(toy_config(**TOY), tmp_path / name, progress=False, fsdp=True)
        assert result.losses == plain.losses
        assert result.test == plain.test
        assert not any(isinstance(tensor, DTensor) for tensor in result.model.state_dict().values())
        torch.testing.assert_close(result.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)
        assert not result.model.training
        assert not dist.is_initialized()


def test_weight_decay_leaves_out_the_same_parameters(tmp_path: Path) -> None:
    plain, sharded = (
        train(toy_config(weight_decay=5.0), tmp_path / str(fsdp), progress=False, fsdp=fsdp) for fsdp in (False, True)
    )
    without = train(toy_config(weight_decay=0.0), tmp_path / "without", progress=False)
    assert sharded.losses == plain.losses != without.losses


@pytest.mark.parametrize("arm", ["plain", "row"])
def test_the_monitor_records_the_same(arm: str, tmp_path: Path) -> None:
    config = vit_config(precondition=ARMS[arm], steps=3, monitor={"every": 2}, accumulation_steps=2)
    plain, sharded = (train(config, tmp_path / str(fsdp), progress=False, fsdp=fsdp) for fsdp in (False, True))
    assert len(sharded.conditioning) == 4
    assert repr(sharded.conditioning) == repr(plain.conditioning)
    assert sharded.losses == plain.losses


class Scalar(Toy):
    """Its model has a parameter without axes, which FSDP2 cannot divide."""

    name = "scalar"

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
        return model


def test_a_model_that_cannot_be_sharded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "scalar", Scalar)
    with pytest.raises(ValueError, match=r"the model cannot be sharded: .*scalar.*Train it without fsdp"):
        train(toy_config(task="scalar"), tmp_path / "run", progress=False, fsdp=True)
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert not dist.is_initialized()


def names(blocks: list[nn.Module]) -> list[str]:
    return [type(block).__name__ for block in blocks]


def test_units_are_the_blocks() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=12, num_heads=2)
    assert repeated_blocks(ARMS["row"].apply(vit) or vit) == list(vit.blocks)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=5))
    assert set(gpt2._no_split_modules) == {"GPT2Block"}
    assert names(repeated_blocks(gpt2)) == ["GPT2Block"] * 2
    assert names(repeated_blocks(nn.ModuleDict({"inner": gpt2}))) == ["GPT2Block"] * 2
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 4)
    assert repeated_blocks(encoder) == list(encoder.layers)
    assert names(repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Tanh(), nn.Linear(2, 9)))) == [
        "Linear",
        "Linear",
    ]
    for without in (nn.Linear(2, 2), nn.Sequential(nn.Tanh(), nn.Tanh()), nn.Sequential(nn.Linear(2, 2), nn.Tanh())):
        assert repeated_blocks(without) == []


def test_a_group_that_exists_is_kept() -> None:
    with process_group(alone=True):
        with process_group(alone=True):
            assert dist.get_world_size() == 1
        assert dist.is_initialized()
    assert not dist.is_initialized()
