import math
import sys

import pytest
import torch

from preconditioned_attention.diagnostics import condition_number
from preconditioned_attention.diagnostics.extremes import extreme_singular_values
from tests.helpers.spectra import exact_dense, with_spectrum


@pytest.mark.parametrize("kappa", [1.5, 1e3, 1e8])
@pytest.mark.parametrize("shape", [(300, 64), (64, 300), (64, 64)], ids=str)
def test_known_extremes_lie_within_the_errors(kappa: float, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    exact = torch.logspace(0, -math.log10(kappa), 64, dtype=torch.float64)
    found = extreme_singular_values(with_spectrum(exact, *shape))
    assert abs(found.largest - 1) <= found.largest_error < 1e-8
    assert abs(found.smallest - exact[-1]) <= found.smallest_error < 1e-6 * exact[-1] + 1e-12
    result = condition_number(with_spectrum(exact, *shape), method="lanczos")
    assert result.method == "lanczos on R and its inverse (A = Q R)"
    assert result.value.item() == pytest.approx(kappa, rel=1e-6)
    assert result.lower <= kappa <= result.upper


def test_kappa_of_1e12_lies_within_the_bounds() -> None:
    a = exact_dense(torch.linspace(0, 40, 32).round(), 64, 32)
    result = condition_number(a, method="lanczos")
    assert result.lower <= 2.0**40 <= result.upper <= 1.1 * result.lower


def test_softmax_matrices_one_by_one() -> None:
    torch.manual_seed(0)
    weights = (3 * torch.randn(2, 3, 80, 80, dtype=torch.float64)).softmax(dim=-1)
    result = condition_number(weights, method="lanczos")
    torch.testing.assert_close(result.value, torch.linalg.cond(weights), rtol=1e-6, atol=0)


def test_singular_zero_and_not_finite_are_flagged() -> None:
    torch.manual_seed(0)
    a = torch.randn(4, 50, 40, dtype=torch.float64)
    a[0, :, 3] = a[0, :, 4]
    a[1] = 0
    a[2, 0, 0] = torch.nan
    result = condition_number(a, method="lanczos")
    assert result.numerically_singular.tolist() == [True, True, False, False]
    assert result.defined.tolist() == [False, False, False, True]
    assert result.value.isnan().tolist() == [True, True, True, False]
    assert result.lower[0] > 1e11


def test_small_matrices_are_decomposed_and_the_result_says_so() -> None:
    a = torch.randn(3, 50, 5)
    result = condition_number(a, method="lanczos")
    assert result.method == "svd (lanczos begins at 32 rows and columns)"
    torch.testing.assert_close(result.value, condition_number(a).value, rtol=1e-9, atol=0)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r'"lanczos" computes in torch.float64 only'):
        condition_number(torch.eye(40), method="lanczos", precision=torch.float32)
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match=r"preconditioned-attention\[train\]"):
        condition_number(torch.eye(40), method="lanczos")


def test_without_numpy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(tensor: torch.Tensor) -> None:
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch.Tensor, "numpy", unavailable)
    monkeypatch.setitem(sys.modules, "scipy.linalg", None)
    with pytest.raises(ImportError, match=r"preconditioned-attention\[train\]"):
        condition_number(torch.eye(40), method="lanczos")


def test_an_empty_batch() -> None:
    assert condition_number(torch.randn(0, 3, 40, 40), method="lanczos").value.shape == (0, 3)
