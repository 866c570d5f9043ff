import pytest
import torch
from torch import nn

from preconditioned_attention.lab.tasks import OptimizerSettings
from preconditioned_attention.lab.tasks.optimizer import check_left_out, make_adamw, make_cosine
from tests.helpers.schedules import learning_rates, sgd


def settings(**changes: object) -> OptimizerSettings:
    options = {"steps": 12, "batch_size": 4, "learning_rate": 0.1, "weight_decay": 0.2, "betas": (0.8, 0.9), **changes}
    return OptimizerSettings(**options)  # type: ignore[arg-type]


def test_only_parameters_with_two_axes_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model[0].bias.requires_grad_(False)
    decaying, others = make_adamw(model, settings(), decay_vectors=False).param_groups
    assert [id(p) for p in decaying["params"]] == [id(model[0].weight)]
    assert [id(p) for p in others["params"]] == [id(model[1].weight), id(model[1].bias)]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    assert (decaying["lr"], decaying["betas"]) == (0.1, (0.8, 0.9))


def test_everything_decays_in_the_model_s_order() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    (group,) = make_adamw(model, settings(), decay_vectors=True).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert group["weight_decay"] == 0.2


def test_a_model_without_one_kind_of_parameter() -> None:
    assert len(make_adamw(nn.LayerNorm(4), settings(), decay_vectors=False).param_groups) == 1


def test_eps_is_torchs_unless_it_is_set() -> None:
    defaults = torch.optim.AdamW(nn.Linear(2, 2).parameters()).defaults
    assert make_adamw(nn.Linear(2, 2), settings(), decay_vectors=True).param_groups[0]["eps"] == defaults["eps"]
    assert make_adamw(nn.Linear(2, 2), settings(eps=1e-6), decay_vectors=True).param_groups[0]["eps"] == 1e-6


def test_warm_up_and_cosine() -> None:
    rates = learning_rates(make_cosine(sgd(0.1), settings(warmup_steps=4, final_learning_rate=0.01)), 13)
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[8] == pytest.approx(0.055)  # half of the cosine
    assert rates[12] == pytest.approx(0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_milestones_replace_the_cosine() -> None:
    options = {"warmup_steps": 2, "milestones": (6, 9), "learning_rate": 1.0, "final_learning_rate": 2e-2}
    rates = learning_rates(make_cosine(sgd(), settings(**options)), 12)
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.02, 0.02, 0.02])


def test_no_warm_up_starts_at_the_learning_rate() -> None:
    rates = learning_rates(make_cosine(sgd(0.1), settings(steps=10)), 6)
    assert (rates[0], rates[5]) == (0.1, pytest.approx(0.05))


def test_the_schedule_survives_its_state_dict() -> None:
    scheduler, other = (make_cosine(sgd(0.1), settings(warmup_steps=3)) for _ in range(2))
    learning_rates(scheduler, 5)
    other.load_state_dict(scheduler.state_dict())
    assert learning_rates(other, 8) == learning_rates(scheduler, 8)


def test_what_a_schedule_has_no_use_for_is_named() -> None:
    check_left_out(settings(), "warmup_steps", "milestones")
    message = r"learning-rate schedule of its own; leave out warmup_steps=3, milestones=\(5,\)"
    with pytest.raises(ValueError, match=message):
        check_left_out(settings(warmup_steps=3, milestones=(5,)), "warmup_steps", "final_learning_rate", "milestones")
