from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from preconditioned_attention import PreconditionConfig, precondition_
from tests.helpers.dtensor_worker import connect, free_port

GAIN = PreconditionConfig(gain=0.5)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    connect(0, 1, free_port())
    yield
    dist.destroy_process_group()


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2, enable_nested_tensor=False)


def test_a_gain_in_a_wrapped_model_is_refused_and_nothing_is_changed() -> None:
    for model, where in (
        (DistributedDataParallel(encoder()), "the model is wrapped by DistributedDataParallel"),
        (nn.Sequential(DistributedDataParallel(encoder())), "its submodule '0' is wrapped by DistributedDataParallel"),
        (fully_shard(encoder()), "the model is wrapped by fully_shard"),
    ):
        keys = list(model.state_dict())
        with pytest.raises(ValueError, match=f"config.gain must be None where {where}.*call precondition_ before"):
            precondition_(model, GAIN)
        assert list(model.state_dict()) == keys
        precondition_(model)  # without a gain nothing is left out


def test_a_gain_that_the_wrapper_does_not_know_is_found_in_the_first_pass() -> None:
    wrapped = DistributedDataParallel(encoder())
    precondition_(wrapped.module, GAIN)
    with pytest.raises(RuntimeError, match="a gain was added after DistributedDataParallel had taken the parameters"):
        wrapped(torch.randn(1, 3, 8))


def test_a_gain_that_the_wrapper_knows_or_that_is_frozen_is_none_of_its_business() -> None:
    model = encoder()
    precondition_(model, GAIN)
    DistributedDataParallel(model)(torch.randn(1, 3, 8)).sum().backward()
    wrapped = DistributedDataParallel(encoder())
    precondition_(wrapped.module, GAIN)
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(not name.endswith("gain"))
    wrapped(torch.randn(1, 3, 8))
