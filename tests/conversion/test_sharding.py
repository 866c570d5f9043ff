"""Gains as distributed parameters; several processes are in `test_distributed`."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from preconditioned_attention import PreconditionConfig, precondition_, register_prehook
from preconditioned_attention.conversion import Layout, shard_gains_
from preconditioned_attention.layers import MultiheadAttention
from preconditioned_attention.layers.distributed_gain import gain_of_heads
from tests.helpers.dtensor_worker import connect, free_port
from tests.helpers.parallel_checks import SeparateAttention

PLAN = {name: ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")} | {"proj": RowwiseParallel()}


@pytest.fixture
def alone() -> Iterator[None]:
    connect(0, 1, free_port())
    yield
    dist.destroy_process_group()


def attention() -> nn.Module:
    return MultiheadAttention(16, 4, precondition=None)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("first", [True, False])
def test_a_gain_follows_the_weights(first: bool) -> None:
    model, x = attention(), torch.randn(2, 5, 16)
    if first:
        precondition_(model, PreconditionConfig(gain=0.5))
        expected = model(x)
        assert shard_gains_(model) == 0, "no weight is distributed"
    parallelize_module(model, init_device_mesh("cpu", (1,)), PLAN)
    if first:
        assert shard_gains_(model) == 1
    else:
        precondition_(model, PreconditionConfig(gain=0.5))
        expected = model(x)
    gain = model.preconditioner.gain
    assert isinstance(gain, DTensor)
    assert isinstance(gain, nn.Parameter)
    assert gain.placements == (Shard(0),)
    assert shard_gains_(model) == 0, "it is distributed already"
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def test_models_without_gains_or_without_attention() -> None:
    model = attention()
    assert shard_gains_(model) == shard_gains_(nn.Linear(2, 2)) == 0
    precondition_(model)
    assert shard_gains_(model) == 0


def test_one_process_with_fewer_heads_than_gains_is_no_tensor_parallelism() -> None:
    """The usual message for a gain that does not fit."""
    gain = nn.Parameter(torch.ones(4))
    assert gain_of_heads(gain, torch.ones(1, 2, 3, 4)) is gain


def test_layouts_that_cannot_tell_how_wide_some_heads_are() -> None:
    assert Layout(head_dim=4, num_heads=4).of_some_heads() == Layout(head_dim=4)
    with pytest.raises(ValueError, match="head_dim must be given where tensor parallelism shares out the heads"):
        Layout(num_heads=4).of_some_heads()


def test_an_exported_hook_unflattens_as_the_pipeline_tracer_needs_it() -> None:
    register_prehook(SeparateAttention, hook_target="out", num_heads="heads")
    model, x = nn.Sequential(SeparateAttention()), torch.randn(2, 5, 16)
    precondition_(model, PreconditionConfig(gain=0.5))
    parts = torch.export.unflatten(torch.export.export(model, (x,)))
    torch.testing.assert_close(parts(x), model(x))
    with pytest.raises(ValueError, match=r"is a graph, of torch\.fx or torch\.export"):
        precondition_(parts)
