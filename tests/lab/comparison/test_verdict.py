import dataclasses

import pytest

from preconditioned_attention.lab.comparison import ArmSummary, Outcome, Plan, RunKey, Verdict
from preconditioned_attention.lab.comparison.statistics import paired_difference
from preconditioned_attention.lab.comparison.summary import Failure, RateSummary
from preconditioned_attention.lab.comparison.verdict import baseline_sentences, make_verdicts

REFERENCE = (0.90, 0.91, 0.92, 0.93)


def judge(
    test: tuple[float, ...], *, higher_is_better: bool = True, bracketed: bool = True, failed: int = 0
) -> Verdict:
    """The verdict on an arm with these test metrics, against ``REFERENCE``."""
    seeds = tuple(range(len(test)))
    plan = Plan(
        arms={"plain": None, "arm": None}, seeds=seeds, learning_rates=(1e-3, 1e-2), higher_is_better=higher_is_better
    )
    base = REFERENCE[: len(test)]
    rates = tuple(RateSummary(rate, test[failed:], seeds[:failed]) for rate in plan.learning_rates)
    failures = tuple(
        Failure(RunKey(seed, rate, "arm"), "loss is nan") for seed in seeds[:failed] for rate in plan.learning_rates
    )
    common = {"rates": rates, "arm": None, "validation": test, "learning_rate": 1e-3, "bracketed": bracketed}
    plain = ArmSummary(name="plain", failures=(), test=base, **common)
    arm = ArmSummary(name="arm", failures=failures, test=test, difference=paired_difference(test, base), **common)
    if failed:
        arm = ArmSummary(name="arm", arm=None, rates=rates, failures=failures)
    return make_verdicts(plan, {"plain": plain, "arm": arm})["arm"]


def plus(*differences: float) -> tuple[float, ...]:
    return tuple(base + difference for base, difference in zip(REFERENCE, differences, strict=False))


def test_better_when_the_whole_interval_is_on_the_better_side():
    verdict = judge(plus(0.030, 0.032, 0.031, 0.029))
    assert verdict.outcome is Outcome.BETTER
    # Mean 0.0305, s = 0.0012910, t_3(0.975) = 3.18245, half-width 0.0020543.
    numbers = "+0.0305 (95% interval +0.0284 to +0.0326, 4 seeds)"
    assert verdict.sentences == (
        f"The mean difference in test accuracy is {numbers}: a gain, the interval excludes 0.",
    )


def test_worse_is_said_as_plainly_as_better():
    verdict = judge(plus(-0.030, -0.032, -0.031, -0.029))
    assert verdict.outcome is Outcome.WORSE
    assert verdict.sentences[0] == (
        "The mean difference in test accuracy is −0.0305 (95% interval −0.0326 to −0.0284, 4 seeds): "
        "a loss, the interval excludes 0."
    )


@pytest.mark.parametrize(("sign", "outcome", "word"), [(-1, Outcome.BETTER, "gain"), (1, Outcome.WORSE, "loss")])
def test_a_lower_loss_is_better(sign, outcome, word):
    test = plus(*(sign * value for value in (0.030, 0.032, 0.031, 0.029)))
    verdict = judge(test, higher_is_better=False)
    assert verdict.outcome is outcome
    assert f"a {word}, the interval excludes 0" in verdict.sentences[0]


@pytest.mark.parametrize(
    ("higher_is_better", "gain", "loss"), [(True, "0.0222", "0.0122"), (False, "0.0122", "0.0222")]
)
def test_inconclusive_says_what_is_excluded_on_each_side(higher_is_better, gain, loss):
    # Mean 0.005, s = 0.0108012, half-width 3.18245 * s / 2 = 0.0171872.
    verdict = judge(plus(-0.01, 0.015, 0.01, 0.005), higher_is_better=higher_is_better)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "the interval contains 0" in verdict.sentences[0]
    assert verdict.sentences[0].endswith(f"It excludes gains above {gain} and losses above {loss}.")


def test_an_interval_that_just_misses_zero_is_not_rounded_into_a_claim():
    assert judge(plus(-0.0005, 0.02, 0.02, 0.02)).outcome is Outcome.INCONCLUSIVE


def test_without_spread_nothing_is_claimed():
    for difference in (0.0, 0.01, -0.01):
        verdict = judge(plus(*[difference] * 4))
        assert verdict.outcome is Outcome.NO_INTERVAL
        assert "without spread" in verdict.sentences[0]


def test_one_seed_gives_no_interval():
    verdict = judge(plus(0.5))
    assert verdict.outcome is Outcome.NO_INTERVAL
    assert "with 1 seed, too few for an interval" in verdict.sentences[0]


def test_two_seeds_are_called_unreliable():
    assert "With 2 seeds the interval is unreliable" in judge(plus(0.0300, 0.0301)).sentences[1]
    assert not any("unreliable" in sentence for sentence in judge(plus(0.030, 0.031, 0.032)).sentences)


def test_failed_arm_says_why():
    verdict = judge(plus(0.1, 0.1), failed=1)
    assert verdict.outcome is Outcome.FAILED
    assert "no result to compare" in verdict.sentences[0]
    assert verdict.sentences[-1] == "2 of 4 runs failed, the first with seed 0, learning rate 0.001: loss is nan."


def test_edge_of_the_grid_is_part_of_the_words():
    verdict = judge(plus(0.030, 0.032, 0.031), bracketed=False)
    assert "does not bracket the optimum" in verdict.sentences[1]


def test_reference_is_only_described():
    plan = Plan(arms={"plain": None}, seeds=(0,), learning_rates=(1e-3,))
    rates = (RateSummary(1e-3, (0.5,), ()),)
    plain = ArmSummary(
        name="plain",
        arm=None,
        rates=rates,
        failures=(),
        learning_rate=1e-3,
        bracketed=False,
        validation=(0.5,),
        test=(0.4,),
    )
    verdict = make_verdicts(plan, {"plain": plain})["plain"]
    assert verdict.outcome is Outcome.REFERENCE
    assert verdict.sentences[0].startswith("Test accuracy 0.4000, the mean of 1 seed.")
    assert "one learning rate" in verdict.sentences[1]


def test_without_the_reference_nothing_is_measured():
    plan = Plan(arms={"plain": None, "arm": None}, seeds=(0,), learning_rates=(1e-3,))
    failure = Failure(RunKey(0, 1e-3, "plain"), "no memory")
    plain = ArmSummary(name="plain", arm=None, rates=(RateSummary(1e-3, (), (0,)),), failures=(failure,))
    arm = ArmSummary(
        name="arm",
        arm=None,
        rates=(RateSummary(1e-3, (0.5,), ()),),
        failures=(),
        learning_rate=1e-3,
        bracketed=False,
        validation=(0.5,),
        test=(0.4,),
    )
    verdicts = make_verdicts(plan, {"plain": plain, "arm": arm})
    assert verdicts["plain"].outcome is Outcome.FAILED
    assert verdicts["arm"].outcome is Outcome.NO_INTERVAL
    assert "plain failed" in verdicts["arm"].sentences[0]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_arms_stand_beside_predictors_without_a_model(higher_is_better):
    plan = Plan(
        arms={"plain": None, "arm": None},
        seeds=(0, 1),
        learning_rates=(1e-3,),
        metric="score",
        higher_is_better=higher_is_better,
        baselines={"guess": 2.5, "oracle": 4.0},
    )
    summaries = {
        name: ArmSummary(
            name=name,
            arm=None,
            rates=(),
            failures=(),
            validation=test,
            test=test,
            learning_rate=1e-3,
            bracketed=True,
        )
        for name, test in (("plain", (2.0, 2.2)), ("arm", (3.0, 3.2)))
    }
    guess, oracle = baseline_sentences(plan, summaries)
    better, worse = ("arm (3.100)", "plain (2.100)") if higher_is_better else ("plain (2.100)", "arm (3.100)")
    assert guess == f"guess: test score 2.500; better: {better}; not better: {worse}."
    side = "not better" if higher_is_better else "better"
    assert oracle == f"oracle: test score 4.000; {side}: plain (2.100), arm (3.100)."
    assert baseline_sentences(dataclasses.replace(plan, baselines={}), summaries) == ()
