import math

import pytest

from preconditioned_attention.lab.comparison import Plan, RunMetrics
from preconditioned_attention.lab.comparison.statistics import paired_ratio
from preconditioned_attention.lab.comparison.summary import RateSummary, choose_rate, chosen_runs, summarize
from tests.helpers.synthetic_runs import LOSSES, make_records

PLAN = Plan(arms={"plain": None, "other": None}, seeds=(0, 1), learning_rates=(1e-4, 1e-3, 1e-2))


def metrics_for(plan: Plan = PLAN, **per_arm) -> dict:
    """``per_arm[arm](seed, rate)`` gives a run's metrics or why it failed; the default is the same for all."""

    def default(seed: int, rate: float) -> RunMetrics:
        validation = {1e-4: 0.5, 1e-3: 0.7, 1e-2: 0.6}[rate]
        return RunMetrics(validation=validation + seed / 100, test=validation, losses=LOSSES, seconds_per_step=0.1)

    return {
        (key.arm, key.seed, key.learning_rate): per_arm.get(key.arm, default)(key.seed, key.learning_rate)
        for key in plan.run_keys()
    }


def summaries_of(plan: Plan = PLAN, **per_arm):
    return summarize(plan, make_records(plan, metrics_for(plan, **per_arm)))


def test_validation_chooses_and_test_does_not():
    def test_prefers_another_rate(seed: int, rate: float) -> RunMetrics:
        return RunMetrics(
            validation={1e-4: 0.5, 1e-3: 0.7, 1e-2: 0.6}[rate], test={1e-4: 0.9, 1e-3: 0.1, 1e-2: 0.8}[rate]
        )

    other = summaries_of(other=test_prefers_another_rate)["other"]
    assert other.learning_rate == 1e-3
    assert other.test == (0.1, 0.1)
    assert other.validation == (0.7, 0.7)
    assert other.bracketed


def test_the_choice_is_on_the_mean_over_seeds():
    def one_lucky_seed(seed: int, rate: float) -> RunMetrics:
        return RunMetrics(
            validation=0.99 if (seed, rate) == (0, 1e-4) else {1e-4: 0.1, 1e-3: 0.6, 1e-2: 0.5}[rate], test=0.0
        )

    assert summaries_of(other=one_lucky_seed)["other"].learning_rate == 1e-3


@pytest.mark.parametrize(("higher_is_better", "chosen"), [(True, 1e-3), (False, 1e-4)])
def test_direction_of_the_metric(higher_is_better, chosen):
    plan = Plan(**{**vars(PLAN), "higher_is_better": higher_is_better})
    assert summaries_of(plan)["plain"].learning_rate == chosen


def test_of_equal_rates_the_smaller_is_chosen():
    rates = [RateSummary(rate, (0.5, 0.5), ()) for rate in (1e-4, 1e-3)]
    assert choose_rate(rates, higher_is_better=True).learning_rate == 1e-4


def test_a_rate_with_a_failed_seed_cannot_be_chosen():
    def best_rate_fails_once(seed: int, rate: float) -> RunMetrics | str:
        return (
            "diverged" if (seed, rate) == (1, 1e-3) else RunMetrics(validation=0.9 if rate == 1e-3 else rate, test=rate)
        )

    other = summaries_of(other=best_rate_fails_once)["other"]
    assert other.learning_rate == 1e-2
    assert not other.bracketed
    assert [(failure.key.seed, failure.reason) for failure in other.failures] == [(1, "diverged")]
    assert other.rates[1].mean is None
    assert other.rates[1].failed_seeds == (1,)


def test_an_arm_that_always_fails_has_no_numbers():
    summaries = summaries_of(other=lambda seed, rate: "no memory" if seed == 0 else RunMetrics(validation=1, test=1))
    other = summaries["other"]
    assert (other.learning_rate, other.test, other.difference, other.steps, other.time_ratio) == (
        None,
        (),
        None,
        None,
        None,
    )
    assert len(other.failures) == 3
    assert summaries["plain"].learning_rate == 1e-3


def test_without_a_reference_there_is_no_difference():
    other = summaries_of(plain=lambda seed, rate: "failed")["other"]
    assert other.learning_rate == 1e-3
    assert (other.difference, other.steps, other.time_ratio) == (None, None, None)


def test_an_edge_of_the_grid_is_noticed():
    def larger_is_better(seed: int, rate: float) -> RunMetrics:
        return RunMetrics(validation=rate, test=rate)

    assert not summaries_of(other=larger_is_better)["other"].bracketed
    assert not summaries_of(Plan(**{**vars(PLAN), "learning_rates": (1e-3,)}))["plain"].bracketed


def test_differences_are_paired_by_seed():
    def shifted(seed: int, rate: float) -> RunMetrics:
        return RunMetrics(validation=0.7 if rate == 1e-3 else 0.1, test=0.7 + (0.1, -0.2)[seed])

    assert summaries_of(other=shifted)["other"].difference.values == pytest.approx((0.1, -0.2))


def test_steps_are_counted_against_the_reference_of_the_same_seed():
    def scaled(seed: int, rate: float) -> RunMetrics:
        factor = (0.5, 2.0)[seed]
        return RunMetrics(validation=rate, test=rate, losses=[factor * loss for loss in LOSSES])

    summaries = summaries_of(other=scaled)
    # Window 2 of 40 losses; plain's last smoothed loss is the mean of its last two.
    target = (LOSSES[38] + LOSSES[39]) / 2
    halved = next(step for step in range(2, 41) if (LOSSES[step - 2] + LOSSES[step - 1]) / 4 <= target)
    assert summaries["other"].steps == (halved, None)
    assert summaries["plain"].steps == (40, 40)
    assert summaries["other"].total_steps == (40, 40)


def test_steps_and_times_that_were_not_measured_are_left_out():
    def bare(seed: int, rate: float) -> RunMetrics:
        return RunMetrics(validation=rate, test=rate)

    other = summaries_of(other=bare)["other"]
    assert (other.steps, other.time_ratio, other.seconds_per_step) == (None, None, None)


def test_times_are_paired_by_seed_and_rate_and_skip_failures():
    def timed(seed: int, rate: float) -> RunMetrics | str:
        return (
            "x"
            if (seed, rate) == (0, 1e-4)
            else RunMetrics(validation=rate, test=0, seconds_per_step=0.2 + rate + seed / 9)
        )

    other = summaries_of(other=timed)["other"]
    pairs = [(seed, rate) for seed in (0, 1) for rate in PLAN.learning_rates if (seed, rate) != (0, 1e-4)]
    assert other.time_ratio == paired_ratio([0.2 + rate + seed / 9 for seed, rate in pairs], [0.1] * 5)
    assert math.isclose(other.seconds_per_step, 0.2 + 1e-2 + 0.5 / 9)


def test_chosen_runs_are_in_the_order_of_the_seeds():
    plan = Plan(**{**vars(PLAN), "seeds": (5, 2)})
    runs = chosen_runs(plan, make_records(plan, metrics_for(plan)), "plain")
    assert [run.validation for run in runs] == [0.75, 0.72]
