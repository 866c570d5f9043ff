import random

import numpy as np
import pytest
import torch

from preconditioned_attention import PreconditionConfig, is_preconditioned
from preconditioned_attention.lab.comparison import Prepare
from preconditioned_attention.lab.training.arms import Arm
from tests.helpers.synthetic_runs import tiny_model


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), torch.rand(()).item()  # global on purpose


def test_the_arm_is_applied_and_the_model_returned():
    model = tiny_model()
    assert Prepare(Arm())(model) is model
    assert is_preconditioned(model)
    plain = tiny_model()
    Prepare(None)(plain)
    assert not is_preconditioned(plain)


def test_arms_leave_weights_and_random_state_equal():
    prepared = []
    for arm in (None, Arm(), Arm(PreconditionConfig(gain=0.5))):
        torch.manual_seed(3)
        prepare = Prepare(arm)
        prepare(tiny_model())
        prepared.append((prepare.weights, prepare.random_states, torch.rand(4).tolist()))
    assert prepared[0] == prepared[1] == prepared[2]


def test_random_numbers_drawn_by_a_conversion_are_taken_back(monkeypatch):
    monkeypatch.setattr(Arm, "apply", lambda *_: draw())
    outcomes = []
    for arm in (None, Arm()):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        Prepare(arm)(tiny_model())
        outcomes.append(draw())
    assert outcomes[0] == outcomes[1]


def test_only_models_can_be_prepared():
    with pytest.raises(TypeError, match="got OrderedDict"):
        Prepare(None)(tiny_model().state_dict())
