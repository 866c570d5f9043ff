from collections.abc import Iterator
from pathlib import Path

import pytest
import timm.optim
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from preconditioned_attention.lab.tasks import TASKS, OptimizerSettings
from preconditioned_attention.lab.training import train
from preconditioned_attention.lab.training.sharded_optimizer import check_sharded_optimizer
from preconditioned_attention.lab.training.sharding import process_group
from tests.helpers.toy_task import Toy, toy_config


@pytest.fixture
def model() -> Iterator[nn.Module]:
    with process_group(alone=True):
        yield fully_shard(nn.Linear(6, 6), mesh=init_device_mesh("cpu", (1,)))


def test_optimizers_of_recipes_are_accepted(model: nn.Module) -> None:
    before = {name: value.full_tensor().clone() for name, value in model.state_dict().items()}
    for name in ("adamw", "sgd", "lamb", "lion", "nadamw", "rmsproptf"):
        check_sharded_optimizer(timm.optim.create_optimizer_v2(model, opt=name, lr=1e-4, weight_decay=0.05))
    after = {name: value.full_tensor() for name, value in model.state_dict().items()}
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_one_that_fails_is_named(model: nn.Module) -> None:
    message = r"^optimizer Adafactor cannot be used with fsdp; take another, such as AdamW, or train without fsdp: "
    with pytest.raises(ValueError, match=message):
        check_sharded_optimizer(torch.optim.Adafactor(model.parameters()))


class LocalSign(torch.optim.SGD):
    """Computes with the part that the process holds."""

    def step(self, closure: object = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if isinstance(parameter, DTensor):
                parameter.grad.to_local().sign_()
        super().step()


def test_one_that_computes_something_else_is_named(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"LocalSign cannot be used.*: its steps on divided parameters differ"):
        check_sharded_optimizer(LocalSign(model.parameters(), lr=0.1))


class OwnOptimizer(Toy):
    """Brings an optimizer that FSDP2 cannot use."""

    name = "own-optimizer"

    def make_optimizer(self, model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(model.parameters(), lr=settings.learning_rate)


def test_a_run_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "own-optimizer", OwnOptimizer)
    train(toy_config(task="own-optimizer"), tmp_path / "plain", progress=False)
    with pytest.raises(ValueError, match="optimizer Adafactor cannot be used with fsdp"):
        train(toy_config(task="own-optimizer"), tmp_path / "run", progress=False, fsdp=True)
    assert not (tmp_path / "run" / "config.yaml").exists()
