import json
import math

import numpy as np
import pytest
import torch

from preconditioned_attention.lab.comparison import RunMetrics
from preconditioned_attention.lab.reporting import Picture
from tests.helpers.synthetic_runs import conditioning


def accept(**values) -> RunMetrics:
    return RunMetrics.from_returned({"validation": 0.5, "test": 0.4} | values, metric="accuracy")


def test_numbers_of_any_kind_become_floats():
    metrics = accept(
        validation=torch.tensor(0.5), test=np.float32(0.25), losses=[torch.tensor(1.0), 2], seconds_per_step=1
    )
    assert (metrics.validation, metrics.test, metrics.losses, metrics.seconds_per_step) == (0.5, 0.25, [1.0, 2.0], 1.0)
    json.dumps(metrics.to_dict())


def test_unknown_keys_are_kept():
    assert accept(note="a", count=3).extra == {"note": "a", "count": 3}


def test_dataclass_and_mapping_mean_the_same():
    given = RunMetrics(validation=0.5, test=0.4, losses=[1.0], conditioning=conditioning(), extra={"note": "a"})
    as_mapping = accept(losses=[1.0], conditioning=conditioning(), note="a")
    assert RunMetrics.from_returned(given, metric="accuracy") == as_mapping


def test_moment_defaults_to_the_end():
    row = {key: value for key, value in conditioning()[0].items() if key != "moment"}
    assert accept(conditioning=[row]).conditioning[0]["moment"] == "end"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"validation": math.nan}, "validation is nan"),
        ({"test": math.inf}, "test is inf"),
        ({"losses": [1.0, math.nan]}, "training loss is nan at step 2"),
        ({"seconds_per_step": math.inf}, "seconds_per_step is inf"),
    ],
)
def test_not_finite_is_said_by_name(values, words):
    assert words in accept(**values).not_finite()


def test_an_infinite_condition_number_is_no_failure():
    assert accept(conditioning=conditioning(scale=math.inf)).not_finite() is None


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"validation": {"accuracy": 0.5}}, TypeError, "validation must be a number"),
        ({"test": True}, TypeError, "test must be a number"),
        ({"losses": 1.0}, TypeError, "losses must be a list"),
        ({"losses": ["a"]}, TypeError, "losses must be a number"),
        ({"seconds_per_step": 0}, ValueError, "seconds_per_step must be positive"),
        ({"evaluations": [{"step": 1}]}, ValueError, "'accuracy'"),
        ({"conditioning": [{"layer": "a"}]}, ValueError, "kappa_before"),
        ({"conditioning": [conditioning()[0] | {"moment": "later"}]}, ValueError, "moment"),
        ({"model": object()}, TypeError, "JSON"),
    ],
)
def test_what_cannot_be_reported_is_refused_by_name(values, error, words):
    with pytest.raises(error, match=words):
        accept(**values)


def test_validation_and_test_are_needed():
    with pytest.raises(ValueError, match="missing: test"):
        RunMetrics.from_returned({"validation": 1.0}, metric="accuracy")
    with pytest.raises(TypeError, match="NoneType"):
        RunMetrics.from_returned(None, metric="accuracy")


def test_conditioning_on_the_way_needs_its_step():
    row = {**conditioning()[0], "moment": "training"}
    values = {"validation": 1.0, "test": 1.0}
    kept = RunMetrics.from_returned({**values, "conditioning": [{**row, "step": 3}]}, metric="accuracy").conditioning[0]
    assert (kept["step"], kept["moment"]) == (3, "training")
    with pytest.raises(ValueError, match="with moment 'training' must have a 'step'"):
        RunMetrics.from_returned({**values, "conditioning": [row]}, metric="accuracy")


def test_pictures_survive_the_file():
    metrics = RunMetrics(validation=1.0, test=0.5, pictures={"one": Picture(b"\x00png", "what", "caption")})
    written = json.dumps(metrics.to_dict())
    assert RunMetrics.from_dict(json.loads(written)).pictures == metrics.pictures
    assert json.dumps(RunMetrics.from_dict(json.loads(written)).to_dict()) == written
    assert RunMetrics.from_returned(metrics, metric="accuracy").pictures == metrics.pictures
    with pytest.raises(TypeError, match="pictures must be a mapping"):
        RunMetrics.from_returned({"validation": 1, "test": 1, "pictures": [b"png"]}, metric="accuracy")
