import math

from preconditioned_attention.diagnostics.medians import median


def test_of_an_odd_and_of_an_even_number_of_values() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median(iter([4.0, 1.0, 2.0, 3.0])) == 2.5


def test_infinity_is_a_value() -> None:
    assert median([1.0, math.inf, math.inf]) == math.inf


def test_no_values_and_missing_ones() -> None:
    assert math.isnan(median([]))
    assert math.isnan(median([1.0, math.nan, 2.0]))
