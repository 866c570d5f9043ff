import math

from preconditioned_attention.lab.inspection import summary
from preconditioned_attention.lab.inspection.findings import explanation, most_and_least
from tests.helpers.inspection_models import head, inspection


def test_nothing_to_change_is_said_to_be_so() -> None:
    words = " ".join(summary(inspection(head(), head(head=1))))
    assert "Of 2 heads, C divides the condition number by 1.1 or more in 0" in words
    assert "C improves no head: row norms hardly differ (their median spread is 1.0%)" in words
    uneven = " ".join(summary(inspection(head(spread=0.4), head(head=1, spread=0.4))))
    assert "row norms differ (their median spread is 40.0%), but making them equal does not lower kappa" in uneven


def test_what_helps_and_hurts_is_counted() -> None:
    heads = [head(kappa_after=50.0, spread=0.4), head(head=1, kappa_after=200.0), head(head=2), head(head=3)]
    words = " ".join(summary(inspection(*heads)))
    assert "1.1 or more in 1, multiplies it by as much in 1, and changes it less in 2" in words
    assert "improves no head" not in words
    assert "does not imply a better model" in words


def test_singular_heads_are_not_counted_as_anything_else() -> None:
    heads = [head(kappa_before=math.nan, kappa_after=math.nan), head(head=1, kappa_after=10.0)]
    words = " ".join(summary(inspection(*heads)))
    assert "Of 1 heads" in words
    assert "1 of 2 heads are numerically singular in float64" in words
    only = " ".join(summary(inspection(heads[0])))
    assert "Of " not in only
    assert "1 of 1 heads are numerically singular" in only


def test_most_and_least() -> None:
    factors = [3.0, 1.0, 0.5, 2.0, 1.05, 1.2, 8.0, 4.0, 1.3, 1.01]
    heads = [head(head=i, kappa_after=100 / factor) for i, factor in enumerate(factors)]
    most, least = most_and_least(inspection(*heads, head(head=99, kappa_after=math.nan)))
    assert [one.head for one in most] == [6, 7, 0, 3, 8]
    assert [one.head for one in least] == [2, 1, 9, 4, 5]


def test_explanations_name_the_cause() -> None:
    assert "nearly parallel" in explanation(head(common_direction=0.999))
    assert "evens out row norms that differ by 40%" in explanation(head(kappa_after=50.0, spread=0.4))
    assert "not finite" in explanation(head(spread=math.nan, kappa_before=math.nan, kappa_after=math.nan))
