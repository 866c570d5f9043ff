import json
import math

import pytest

from preconditioned_attention.lab.comparison import Plan, RunMetrics
from preconditioned_attention.lab.comparison.records import RunRecord, to_json
from tests.helpers.synthetic_runs import ARMS, conditioning, make_records

PLAN = Plan(arms=ARMS, seeds=(0,), learning_rates=(1e-3,))


def test_a_record_comes_back_as_it_was():
    reported = {"validation": 0.1, "test": 1 / 3, "losses": [1.0, 0.5], "conditioning": conditioning(), "remark": "x"}
    metrics = RunMetrics.from_returned(reported, metric="accuracy")
    records = make_records(PLAN, {(key.arm, key.seed, key.learning_rate): metrics for key in PLAN.run_keys()})
    for record in records.values():
        assert RunRecord.from_dict(json.loads(to_json(record.to_dict()))) == record


def test_json_is_strict_where_numbers_are_not_finite():
    text = to_json({"a": [math.inf, -math.inf, math.nan, 1.5], "b": (True, None)})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": ["inf", "-inf", "nan", 1.5], "b": [True, None]}
