import math

import pytest
import torch

from preconditioned_attention.diagnostics import condition_number, row_norm_spread


def with_spectrum(singular_values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    u = torch.linalg.qr(torch.randn(rows, len(singular_values), dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, len(singular_values), dtype=torch.float64))[0]
    return u @ singular_values.diag() @ v.T


@pytest.mark.parametrize("kappa", [1.0, 10.0, 1e6])
@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (6, 6)], ids=str)
def test_known_spectra(kappa: float, shape: tuple[int, int]) -> None:
    a = with_spectrum(torch.logspace(0, -math.log10(kappa), 6, dtype=torch.float64), *shape)
    assert condition_number(a).item() == pytest.approx(kappa, rel=1e-6)


def test_batches_one_row_and_singular() -> None:
    assert condition_number(torch.randn(2, 3, 7, 4)).shape == (2, 3)
    assert condition_number(torch.randn(1, 5)).item() == pytest.approx(1.0)
    assert condition_number(torch.diag(torch.tensor([1.0, 0.0]))).item() == math.inf
    assert condition_number(torch.zeros(2, 2)).isnan()


def test_spread_of_row_norms() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 15.0]])
    assert row_norm_spread(a).item() == pytest.approx(0.5)
    assert row_norm_spread(torch.zeros(3, 2)).item() == 0.0
    assert row_norm_spread(torch.randn(2, 3, 7, 4)).shape == (2, 3)


@pytest.mark.parametrize("function", [condition_number, row_norm_spread])
def test_bad_shapes(function) -> None:
    with pytest.raises(ValueError, match=r"shape \(..., N, d\)"):
        function(torch.ones(3))
    with pytest.raises(ValueError, match=r"N, d >= 1"):
        function(torch.ones(0, 3))
