import pytest

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.lab.comparison import Plan, RunKey
from preconditioned_attention.lab.training.arms import Arm
from tests.helpers.synthetic_runs import ARMS


def make_plan(**options) -> Plan:
    return Plan(**{"arms": ARMS, "seeds": (0, 1), "learning_rates": (1e-2, 1e-3)} | options)


def test_runs_are_ordered_by_seed_then_rate_then_arm():
    keys = list(make_plan().run_keys())
    assert keys[:4] == [
        RunKey(0, 1e-3, "plain"),
        RunKey(0, 1e-3, "row"),
        RunKey(0, 1e-3, "row-stopgrad"),
        RunKey(0, 1e-2, "plain"),
    ]
    assert len(keys) == len(set(keys)) == 12


def test_file_names_tell_runs_apart():
    plan = make_plan(learning_rates=(1e-3, 0.0010000001, 3))
    stems = [key.stem for key in plan.run_keys()]
    assert len(set(stems)) == len(stems)
    assert stems[0] == "plain-seed0-lr0.001"


def test_description_changes_with_everything_that_changes_a_run():
    key = RunKey(0, 1e-3, "row")
    base = make_plan().describe(key)
    assert base == make_plan(seeds=[0, 1, 2]).describe(key)
    assert base != make_plan(settings={"steps": 3}).describe(key)
    assert base != make_plan(metric="loss").describe(key)
    assert base != make_plan(arms=ARMS | {"row": Arm(PreconditionConfig(eps=1e-3))}).describe(key)
    assert base != make_plan(variants={"row": {"depth": 2}}).describe(key)
    assert base == make_plan(variants={"row-stopgrad": {"depth": 2}}, baselines={"majority": 0.1}).describe(key)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"arms": {"row": Arm()}}, ValueError, "arms must hold 'plain'"),
        ({"arms": {"plain": Arm()}}, ValueError, "arms must hold 'plain'"),
        ({"arms": {"plain": None, "../up": None}}, ValueError, "arms: a name"),
        ({"arms": {"plain": None, "other": "full"}}, TypeError, r"arms\['other'\]"),
        ({"arms": ["plain"]}, TypeError, "arms must map"),
        ({"seeds": ()}, ValueError, "seeds must not be empty"),
        ({"seeds": (1, 1)}, ValueError, "seeds must be different"),
        ({"seeds": (0.5,)}, TypeError, "seeds must be an integer"),
        ({"seeds": (-1,)}, ValueError, "seeds"),
        ({"seeds": 3}, TypeError, "seeds must be a list"),
        ({"learning_rates": (0.0,)}, ValueError, "learning_rates must be more than 0"),
        ({"learning_rates": (float("nan"),)}, ValueError, "learning_rates"),
        ({"learning_rates": ("1e-3",)}, TypeError, "learning_rates"),
        ({"learning_rates": "1e-3"}, TypeError, "learning_rates must be a list"),
        ({"metric": ""}, TypeError, "metric"),
        ({"variants": {"other": {}}}, ValueError, r"variants must be of arms other than 'plain'; got \['other'\]"),
        ({"variants": {"plain": {"depth": 2}}}, ValueError, "variants must be of arms other than 'plain'"),
        ({"settings": {"model": object()}}, TypeError, "settings"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(options, error, words):
    with pytest.raises(error, match=words):
        make_plan(**options)
