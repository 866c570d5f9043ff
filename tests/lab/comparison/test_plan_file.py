import dataclasses
import json

import pytest

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.lab.comparison import Plan
from preconditioned_attention.lab.comparison.plan_file import differences, plan_from_dict, plan_to_dict, read_plan
from preconditioned_attention.lab.comparison.store import RunStore
from preconditioned_attention.lab.training import Arm
from tests.helpers.synthetic_runs import ARMS

PLAN = Plan(
    arms=ARMS,
    seeds=(3, 0),
    learning_rates=(1e-3, 1e-4),
    settings={"steps": 5, "betas": (0.9, 0.99)},
    variants={"row": {"depth": 2}},
    baselines={"majority": 0.1},
)


def test_a_plan_comes_back_as_it_was():
    again = plan_from_dict(json.loads(json.dumps(plan_to_dict(PLAN, "Title"))))
    assert again == dataclasses.replace(PLAN, settings=PLAN.plain_settings)
    assert list(again.arms) == list(PLAN.arms)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"seeds": (5,), "learning_rates": (1.0,), "baselines": {}}, ""),
        ({"arms": {"plain": None, "row": Arm(), "other": Arm()}}, ""),
        ({"metric": "f1"}, "metric was 'accuracy', is 'f1'"),
        ({"higher_is_better": False}, "higher_is_better was True, is False"),
        ({"settings": {"steps": 6, "betas": [0.9, 0.99]}}, "setting steps was 5, is 6"),
        ({"arms": ARMS | {"row": Arm(PreconditionConfig(gain=1.0))}}, "arm row was"),
        ({"variants": {}}, "arm row was"),
    ],
)
def test_what_two_plans_of_one_folder_may_differ_in(changes, words):
    (found,) = differences(PLAN, dataclasses.replace(PLAN, **changes)) or [""]
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_another_comparison_is_named_before_the_first_run(tmp_path):
    RunStore(tmp_path, PLAN).begin(resume=False, overwrite=False)
    other = RunStore(tmp_path, dataclasses.replace(PLAN, settings={"steps": 6, "betas": [0.9, 0.99]}))
    with pytest.raises(FileExistsError, match=r"comparison\.json belongs to another comparison.*steps was 5, is 6"):
        other.begin(resume=True, overwrite=False)
    plan, title = read_plan(tmp_path / "comparison.json")
    assert plan == dataclasses.replace(PLAN, settings=PLAN.plain_settings)
    assert title == "Comparison"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"arms": 3}', b"[" * 100_000])
def test_a_file_that_is_no_plan_is_named(tmp_path, content):
    path = tmp_path / "comparison.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"comparison\.json is not the plan of a comparison"):
        read_plan(path)
