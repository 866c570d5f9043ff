import pytest

from preconditioned_attention.lab.comparison import ArmSummary, Plan, RunKey, RunMetrics
from preconditioned_attention.lab.comparison.statistics import paired_difference, paired_ratio
from preconditioned_attention.lab.comparison.summary import Failure, RateSummary
from preconditioned_attention.lab.comparison.tables import (
    arms_table,
    conditioning_table,
    failures_table,
    rates_table,
    results_table,
    seeds_table,
    settings_table,
)
from tests.helpers.synthetic_runs import ARMS, conditioning

PLAN = Plan(arms={"plain": None, "row": ARMS["row"]}, seeds=(4, 7), learning_rates=(1e-3, 1e-2))


@pytest.fixture
def summaries() -> dict[str, ArmSummary]:
    rates = (RateSummary(1e-3, (0.8, 0.9), ()), RateSummary(1e-2, (0.7,), (7,)))
    common = {
        "rates": rates,
        "learning_rate": 1e-3,
        "bracketed": False,
        "validation": (0.8, 0.9),
        "total_steps": (50, 50),
    }
    return {
        "plain": ArmSummary(name="plain", arm=None, failures=(), test=(0.7, 0.8), steps=(50, 49), **common),
        "row": ArmSummary(
            name="row",
            arm=ARMS["row"],
            failures=(Failure(RunKey(7, 1e-2, "row"), "no memory"),),
            test=(0.71, 0.83),
            difference=paired_difference((0.71, 0.83), (0.7, 0.8)),
            steps=(20, None),
            time_ratio=paired_ratio((2.0, 2.2), (1.0, 1.0)),
            **common,
        ),
    }


@pytest.fixture
def runs() -> dict[str, list[RunMetrics]]:
    return {
        name: [
            RunMetrics(validation=0.8, test=test, seconds_per_step=0.0125, conditioning=conditioning())
            for test in tests
        ]
        for name, tests in {"plain": (0.7, 0.8), "row": (0.71, 0.83)}.items()
    }


def test_results_hold_means_interval_steps_and_time(summaries):
    plain, full = results_table(PLAN, summaries).rows
    assert plain == ("plain", "0.001", "0.8500", "0.7500", "–", "–", "50 of 50", "–")
    # Differences 0.01 and 0.03: mean 0.02, half-width 12.7062 * 0.0141421 / sqrt(2) = 0.127062.
    assert full[:6] == ("row", "0.001", "0.8500", "0.7700", "+0.0200", "−0.1071 to +0.1471")
    assert full[6] == "in 1 of 2 seeds"
    assert full[7].startswith("2.10 (")


def test_a_failed_arm_has_a_row_of_its_own(summaries):
    failed = ArmSummary(name="row", arm=None, rates=summaries["row"].rates, failures=())
    row = results_table(PLAN, summaries | {"row": failed}).rows[1]
    assert row == ("row", "failed", "–", "–", "–", "–", "–", "–")


def test_every_seed_has_a_row(summaries, runs):
    rows = seeds_table(PLAN, summaries, runs).rows
    assert rows[0] == ("plain", "4", "0.8000", "0.7000", "–", "50", "12.50")
    assert rows[3] == ("row", "7", "0.8000", "0.8300", "+0.0300", "not reached", "12.50")


def test_learning_rates_show_choice_and_failures(summaries):
    table = rates_table(PLAN, summaries)
    assert table.columns == ("learning rate", "plain", "row")
    assert table.rows[0] == ("0.001", "0.8500 ± 0.0707 ◂", "0.8500 ± 0.0707 ◂")
    assert table.rows[1][2] == "failed (1 of 2 seeds)"


def test_conditioning_has_a_row_per_arm_and_layer(runs):
    rows = conditioning_table(runs, "end").rows
    assert rows[1] == ("plain", "blocks.1.attn", "101", "71", "0.2600", "0.0000")
    assert len(rows) == 4
    assert conditioning_table({"plain": [RunMetrics(validation=1, test=1)]}, "end") is None


def test_failures_are_listed(summaries):
    assert failures_table(summaries).rows == (("row", "7", "0.01", "no memory"),)
    assert failures_table({"plain": summaries["plain"]}) is None


def test_arms_and_nested_settings_are_spelled_out():
    assert arms_table(PLAN).rows[0] == ("plain", "unchanged model")
    assert 'gradient="full"' in arms_table(PLAN).rows[1][1]
    settings = {"steps": 3, "task": {"name": "digits", "empty": {}}, "list": [1, 2]}
    assert settings_table("Settings", settings).rows == (
        ("steps", "3"),
        ("task.name", "digits"),
        ("task.empty", "{}"),
        ("list", "[1, 2]"),
    )
    assert settings_table("Settings", {}) is None


def test_baselines_and_variants_are_named(summaries):
    plan = Plan(
        arms=PLAN.arms,
        seeds=PLAN.seeds,
        learning_rates=PLAN.learning_rates,
        variants={"row": {"attention": "softmax"}},
        baselines={"majority": 0.17, "root operator": 0.365},
    )
    note = results_table(plan, summaries).note
    assert note.endswith("Test accuracy without a model: majority 0.1700, root operator 0.3650.")
    assert "without a model" not in results_table(PLAN, summaries).note
    assert arms_table(plan).rows[1][1].endswith('; task: attention="softmax"')
