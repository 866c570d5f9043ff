import dataclasses
from pathlib import Path

import pytest

from preconditioned_attention.lab.comparison import FairnessError, Plan, RunMetrics
from preconditioned_attention.lab.comparison.fairness import StartedRun, check_starts
from tests.helpers.synthetic_runs import ARMS, make_records

PLAN = Plan(arms=ARMS, seeds=(0, 1), learning_rates=(1e-3,))
METRICS = RunMetrics(validation=0.5, test=0.5)
RECORDS = make_records(PLAN, {(key.arm, key.seed, 1e-3): METRICS for key in PLAN.run_keys()})


def runs(**changes: dict[str, object]) -> list[StartedRun]:
    """Every run, started alike for its seed; ``changes`` are by its stem without the rate."""
    found = []
    for key, record in RECORDS.items():
        start = {"weights": [f"w{key.seed}"], "random_states": [f"r{key.seed}"]}
        changed = changes.get(key.stem.removesuffix("-lr0.001").replace("-", "_"), {})
        found.append(StartedRun(Path(key.stem), dataclasses.replace(record, **{**start, **changed}), ""))
    return found


def test_equal_starts_per_seed_pass():
    check_starts(runs())


@pytest.mark.parametrize(("entry", "words"), [("weights", "initial weights"), ("random_states", "random states")])
def test_both_folders_are_named(entry, words):
    with pytest.raises(FairnessError, match=rf"different {words}.*folders plain-seed1-lr0\.001 and row-seed1-lr0\.001"):
        check_starts(runs(row_seed1={entry: ["other"]}))


def test_another_variant_may_start_elsewhere():
    changed = runs(row_seed1={"weights": ["other"]})
    check_starts(dataclasses.replace(run, variant=str(run.record.weights == ["other"])) for run in changed)


def test_a_run_that_was_never_prepared_is_named():
    with pytest.raises(FairnessError, match=r"row-seed0-lr0\.001 never called prepare"):
        check_starts(runs(row_seed0={"weights": []}))
