import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preconditioned_attention.diagnostics import mean_direction_share, row_norm_spread


def test_spread_of_row_norms() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 15.0]])
    assert row_norm_spread(a).value.item() == pytest.approx(0.5)
    assert row_norm_spread(torch.randn(2, 3, 7, 4)).value.shape == (2, 3)
    zero = row_norm_spread(torch.zeros(3, 2))
    assert zero.value == 0
    assert zero.defined


def test_zero_rows_are_no_spread() -> None:
    """Padding and masks leave zero rows, which no row scaling changes."""
    rows = torch.randn(2, 5, 4, dtype=torch.float64)
    padded = torch.cat([rows, torch.zeros(2, 3, 4)], dim=1)
    by_hand = rows.norm(dim=-1).std(dim=-1, correction=0) / rows.norm(dim=-1).mean(dim=-1)
    torch.testing.assert_close(row_norm_spread(padded).value, by_hand, rtol=1e-12, atol=0)
    unit = torch.nn.functional.normalize(padded, dim=-1)
    assert row_norm_spread(unit).value.max() < 1e-12


def test_share_of_the_mean_row() -> None:
    assert mean_direction_share(torch.tensor([[1.0, 2.0]]).expand(5, 2)).value.item() == pytest.approx(1.0)
    assert mean_direction_share(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).value.item() == 0.0
    assert mean_direction_share(torch.eye(4)).value.item() == pytest.approx(0.25)
    a = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    common = a.mean(dim=-2, keepdim=True).expand_as(a)
    by_hand = common.square().sum(dim=(-2, -1)) / a.square().sum(dim=(-2, -1))
    torch.testing.assert_close(mean_direction_share(a).value, by_hand, rtol=1e-12, atol=0)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 5), power=st.integers(-900, 900), seed=st.integers(0, 2**16))
def test_neither_depends_on_scale_or_rotation(rows: int, columns: int, power: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(columns, columns, generator=g, dtype=torch.float64))[0]
    for function in (row_norm_spread, mean_direction_share):
        value = function(a).value
        torch.testing.assert_close(function(torch.ldexp(a @ q, torch.tensor(float(power)))).value, value)
        assert 0 <= value <= (1 + 1e-12 if function is mean_direction_share else rows**0.5)


@pytest.mark.parametrize("function", [row_norm_spread, mean_direction_share])
def test_what_is_not_defined_and_what_is_refused(function) -> None:
    a = torch.randn(3, 4, 2)
    a[1, 2, 0] = torch.inf
    result = function(a)
    assert result.defined.tolist() == [True, False, True]
    assert result.value.isnan().tolist() == [False, True, False]
    assert result.precision == torch.float64
    with pytest.raises(ValueError, match=r"shape \(..., N, d\)"):
        function(torch.ones(3))
    with pytest.raises(ValueError, match=r"N, d >= 1"):
        function(torch.ones(0, 3))


def test_a_zero_matrix_has_no_mean_direction() -> None:
    result = mean_direction_share(torch.zeros(3, 2))
    assert not result.defined
    assert result.value.isnan()
