import copy

import pytest
import torch
from torch import nn

from preconditioned_attention.lab.training.initial_state import (
    HashedPrepare,
    hash_random_state,
    hash_weights,
    preserve_random_state,
)
from tests.helpers.synthetic_runs import tiny_model


def test_random_state_is_kept_when_an_error_passes():
    torch.manual_seed(0)
    before = hash_random_state()
    with pytest.raises(RuntimeError), preserve_random_state():
        torch.rand(1) @ torch.rand(2)
    assert hash_random_state() == before
    torch.rand(1)
    assert hash_random_state() != before


def test_hash_sees_every_parameter_and_buffer():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2).to(torch.bfloat16)
            self.register_buffer("scale", torch.tensor(1.0), persistent=False)

    model = Model()
    changed = copy.deepcopy(model)
    assert hash_weights(model) == hash_weights(changed)
    with torch.no_grad():
        changed.scale += 1e-6
    assert hash_weights(model) != hash_weights(changed)
    reshaped, flat = nn.Module(), nn.Module()
    reshaped.register_buffer("x", torch.zeros(2, 2))
    flat.register_buffer("x", torch.zeros(4))
    assert hash_weights(reshaped) != hash_weights(flat)


def test_unused_devices_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    alone = hash_random_state()
    states = [torch.tensor([7, 0]).view(torch.uint8)] * 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    assert hash_random_state() == alone
    for changed in ([7, 4], [8, 0]):
        states[1] = torch.tensor(changed).view(torch.uint8)
        assert hash_random_state() != alone


def test_weights_are_hashed_before_and_the_random_state_after() -> None:
    def prepare(model: nn.Module) -> nn.Module:
        torch.rand(1)
        return model.double()

    model = tiny_model()
    before = hash_weights(model)
    hashed = HashedPrepare(prepare)
    assert hashed(model) is model
    assert hashed.weights == before != hash_weights(model)
    assert hashed.random_state == hash_random_state()
