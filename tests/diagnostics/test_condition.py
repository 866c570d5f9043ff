import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preconditioned_attention.diagnostics import condition_number
from tests.helpers.spectra import exact_dense, with_spectrum

SHAPES = [(32, 8), (8, 32), (8, 8), (64, 8)]


def evenly(kappa: float, count: int = 8) -> torch.Tensor:
    return torch.logspace(0, -math.log10(kappa), count, dtype=torch.float64)


def test_the_constructed_spectrum_is_exact() -> None:
    exponents = torch.linspace(0, 40, 8).round()
    a = exact_dense(exponents, 16, 8)

    def reflection(n: int) -> list[list[Fraction]]:
        return [[Fraction(int(i == j)) - Fraction(2, n) for j in range(n)] for i in range(n)]

    left, right = reflection(16), reflection(8)
    for i in range(16):
        for j in range(8):
            exact = sum(left[i][k] * Fraction(1, 2 ** int(exponents[k])) * right[k][j] for k in range(8))
            assert Fraction(a[i, j].item()) == exact


@pytest.mark.parametrize("bits", [0, 3, 10, 20, 27, 30, 35, 40])  # kappa from 1 to 1.1e12
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", ["svd", "gram"])
def test_exactly_known_spectra(bits: int, shape: tuple[int, int], method: str) -> None:
    result = condition_number(exact_dense(torch.linspace(0, bits, 8).round(), *shape), method=method)
    assert not result.numerically_singular
    assert result.value.item() == pytest.approx(2.0**bits, rel=1e-6)
    assert result.lower <= 2.0**bits <= result.upper


@pytest.mark.parametrize("kappa", [1.0, 10.0, 1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_vectors_and_the_bounds_of_rounding(kappa: float, shape: tuple[int, int]) -> None:
    # The product of the factors was rounded: from 1e9 on its condition number is not kappa to six digits.
    result = condition_number(with_spectrum(evenly(kappa), *shape))
    assert not result.numerically_singular
    assert result.value.item() == pytest.approx(kappa, rel=max(1e-6, 4e-16 * kappa))
    assert result.lower <= kappa <= result.upper


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", ["svd", "gram"])
def test_rank_deficient(shape: tuple[int, int], method: str) -> None:
    values = evenly(100.0)
    values[5:] = 0
    result = condition_number(with_spectrum(values, *shape), method=method)
    assert result.numerically_singular
    assert not result.defined
    assert result.value.isnan()
    assert result.upper.isinf()
    assert 1e12 < result.lower < 1e17


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_a_dtype_can_tell(dtype: torch.dtype) -> None:
    unit = torch.finfo(dtype).eps / 2
    told = condition_number(with_spectrum(evenly(0.1 / unit**0.5), 64, 8).to(dtype))
    assert told.value.item() == pytest.approx(0.1 / unit**0.5, rel=10 * unit**0.5)
    assert told.lower <= 0.1 / unit**0.5 <= told.upper
    beyond = condition_number(with_spectrum(evenly(10 / unit), 64, 8).to(dtype))
    assert beyond.numerically_singular
    assert 0.1 / unit < beyond.lower < 10 / unit
    assert not condition_number(torch.eye(64, dtype=dtype)).numerically_singular


def test_one_row_or_column_has_condition_number_one() -> None:
    for shape in ((1, 5), (5, 1), (1, 1)):
        result = condition_number(torch.randn(shape))
        assert result.value.item() == 1.0
        assert result.lower.item() == 1.0


def test_zero_matrix_is_flagged() -> None:
    for method in ("svd", "gram"):
        result = condition_number(torch.zeros(3, 2), method=method)
        assert result.numerically_singular
        assert result.value.isnan()
        assert (result.lower, result.upper) == (1, torch.inf)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_entries_that_are_not_finite_spoil_their_own_matrix_only(bad: float) -> None:
    a = torch.randn(2, 3, 7, 4)
    whole = condition_number(a)
    a[1, 2, 0, 0] = bad
    result = condition_number(a)
    assert result.defined.logical_not().nonzero().tolist() == [[1, 2]]
    assert result.value.isnan().nonzero().tolist() == [[1, 2]]
    assert not result.numerically_singular.any()
    assert torch.equal(result.value[result.defined], whole.value[result.defined])


def test_batches_and_what_the_result_says() -> None:
    a = torch.randn(2, 3, 7, 4)
    result = condition_number(a)
    assert (result.value.shape, result.method, result.precision) == ((2, 3), "svd", torch.float64)
    torch.testing.assert_close(result.value, torch.linalg.cond(a.double()), rtol=1e-12, atol=0)
    single = condition_number(a, precision=torch.float32)
    assert (single.precision, single.value.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(single.value.double(), result.value, rtol=1e-4, atol=0)
    assert condition_number(torch.randn(0, 3, 7, 4)).value.shape == (0, 3)


@pytest.mark.parametrize("factor", [2.0**-1060, 2.0**-600, 2.0**600, 2.0**1015])
@pytest.mark.parametrize("method", ["svd", "gram"])
def test_any_size_of_entries(factor: float, method: str) -> None:
    a = exact_dense(torch.tensor([0, 1, 2, 3]), 8, 4)
    assert condition_number(a * factor, method=method).value.item() == pytest.approx(8, rel=1e-12)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"matrices must have shape \(..., N, d\)"):
        condition_number(torch.ones(3))
    with pytest.raises(ValueError, match=r"N, d >= 1"):
        condition_number(torch.ones(0, 3))
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        condition_number(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="unknown method 'qr'"):
        condition_number(torch.ones(3, 3), method="qr")
    with pytest.raises(ValueError, match=r"got torch\.bfloat16"):
        condition_number(torch.ones(3, 3), precision=torch.bfloat16)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), power=st.integers(-500, 500), seed=st.integers(0, 2**16))
def test_scale_rotation_and_transposition_change_nothing(rows: int, columns: int, power: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(rows, rows, generator=g, dtype=torch.float64))[0]
    plain = condition_number(a)
    assert plain.value >= 1
    for other in (a * 2.0**power, q @ a, a.mT):
        result = condition_number(other)
        assert result.lower <= plain.upper
        assert plain.lower <= result.upper
        torch.testing.assert_close(result.value, plain.value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 3), (4, 30), (6, 6)], ids=str)
def test_the_bounds_hold_what_was_rounded_away(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    exact = torch.randn(2000, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kappa = torch.linalg.cond(exact)
    rounded = condition_number(exact.to(dtype))
    assert (rounded.lower <= kappa).all()
    assert (kappa <= rounded.upper).all()
    assert (rounded.upper.isinf() == rounded.numerically_singular).all()
    assert rounded.defined.float().mean() > 0.9
