import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preconditioned_attention.diagnostics.theory import row_equilibration_bound
from tests.helpers.theory_instances import scaled_orthonormal


@pytest.mark.parametrize("shape", [(12, 4), (4, 12), (5, 5), (40, 3)], ids=str)
def test_ten_thousand_instances_with_a_known_minimum(shape: tuple[int, int]) -> None:
    a = scaled_orthonormal(*shape)
    result = row_equilibration_bound(a, torch.ones(len(a), dtype=torch.float64))
    assert result.applies.all()
    assert result.holds.all()
    assert (result.left <= math.sqrt(shape[0]) * (1 + 1e-9)).all()
    if shape[0] > shape[1]:
        assert result.left.max() > 1.3  # C is not the best scaling, so the factor is not idle


def test_ten_thousand_instances_against_any_one_scaling() -> None:
    g = torch.Generator().manual_seed(1)
    a = torch.randn(10_000, 9, 4, generator=g, dtype=torch.float64)
    d = torch.randn(10_000, 9, 1, generator=g, dtype=torch.float64).exp()
    values = torch.linalg.svdvals(d * a)
    assert row_equilibration_bound(a, values[:, 0] / values[:, -1]).holds.all()


def test_against_the_solver() -> None:
    g = torch.Generator().manual_seed(2)
    a = torch.randn(10, 2, 8, 3, generator=g, dtype=torch.float64)
    result = row_equilibration_bound(a)
    assert result.left.shape == (10, 2)
    assert result.holds.all()
    assert (result.right / math.sqrt(8) <= result.left * (1 + 1e-9)).all()  # the minimum is one


@settings(max_examples=60, derandomize=True, deadline=None)
@given(rows=st.integers(2, 8), seed=st.integers(0, 2**16), power=st.floats(0, 6))
def test_the_factor_is_nearly_reached_but_never_passed(rows: int, seed: int, power: float) -> None:
    # One long direction in N - 1 parallel rows: equilibration weighs it sqrt(N - 1) times too much.
    a = torch.zeros(rows, 2, dtype=torch.float64)
    a[:-1, 0], a[-1, 1] = 10.0**-power, 1.0
    best = torch.tensor(1.0, dtype=torch.float64)  # each direction once: the other parallel rows scaled towards 0
    result = row_equilibration_bound(a, best)
    assert result.holds
    assert result.left.item() == pytest.approx(math.sqrt(rows - 1), rel=1e-9)


def test_zero_rows_do_not_count() -> None:
    a = torch.zeros(9, 2, dtype=torch.float64)
    a[0, 0], a[1, 1] = 3.0, 1.0
    assert row_equilibration_bound(a, torch.tensor(1.0)).right.item() == pytest.approx(math.sqrt(2))


def test_an_inequality_that_fails_is_not_called_true() -> None:
    # A "minimum" that no scaling has.
    result = row_equilibration_bound(scaled_orthonormal(12, 4)[:10], torch.full((10,), 0.1))
    assert not result.holds.any()
    assert "Contradicted by 10 of 10" in result.explain()


def test_a_singular_matrix_does_not_meet_the_assumption() -> None:
    result = row_equilibration_bound(torch.ones(3, 6, 2), torch.ones(3))
    assert not result.applies.any()
    assert "A has full rank" in result.explain()


def test_bad_minimum() -> None:
    with pytest.raises(ValueError, match=r"minimum must have shape \(3,\); got \(2,\)"):
        row_equilibration_bound(torch.randn(3, 6, 2), torch.ones(2))
