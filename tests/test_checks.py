import math

import pytest

from preconditioned_attention._checks import check_integer, check_known, check_number


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_integer_of_another_type(value: object) -> None:
    with pytest.raises(TypeError, match="steps must be an integer of at least 1"):
        check_integer("steps", value, minimum=1)


def test_integer_limits() -> None:
    assert check_integer("steps", 1, minimum=1) == 1
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        check_integer("steps", 0, minimum=1)


@pytest.mark.parametrize("value", [True, "1e-3", None, [1.0]])
def test_number_of_another_type(value: object) -> None:
    with pytest.raises(TypeError, match="rate must be a number more than 0"):
        check_number("rate", value, above=0.0)


@pytest.mark.parametrize("value", [0.0, -1, math.inf, math.nan, 1.0, 2])
def test_number_outside_its_limits(value: float) -> None:
    with pytest.raises(ValueError, match="rate must be more than 0 and less than 1; got"):
        check_number("rate", value, above=0.0, below=1.0)


def test_number_at_its_limits() -> None:
    assert check_number("rate", 0) == 0.0
    assert isinstance(check_number("rate", 1), float)


def test_unknown_name_is_told_the_nearest_and_all() -> None:
    check_known("arm", ["plain"], ["plain", "row", "row-stopgrad"])
    with pytest.raises(
        ValueError,
        match=r"unknown arm 'row-stopgrd' \(did you mean 'row-stopgrad'\?\); known: plain, row, row-stopgrad",
    ):
        check_known("arm", ["plain", "row-stopgrd"], ["plain", "row", "row-stopgrad"])
