import mpmath
import pytest
import torch

from preconditioned_attention.diagnostics.refinement import exact_product, refined_smallest
from tests.helpers.spectra import exact_dense, with_spectrum


def smallest(matrix: torch.Tensor) -> float:
    """By 40 digits."""
    with mpmath.workdps(40):
        gram = mpmath.matrix(matrix.tolist())
        gram = gram.T * gram if matrix.size(0) >= matrix.size(1) else gram * gram.T
        return float(mpmath.sqrt(min(mpmath.eigsy(gram, eigvals_only=True))))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (8, 8)], ids=str)
def test_against_forty_digits(shape: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    a = with_spectrum(torch.logspace(0, -12, min(shape), dtype=torch.float64), *shape)
    exact = smallest(a)
    assert refined_smallest(a).item() == pytest.approx(exact, rel=1e-6, abs=0)


@pytest.mark.parametrize("gap", [0.0, 1e-5, 1e-3])
def test_clustered_smallest_values(gap: float) -> None:
    torch.manual_seed(0)
    a = with_spectrum(torch.tensor([1, 1e-3, 1e-12 * (1 + gap), 1e-12], dtype=torch.float64), 12, 4)
    assert refined_smallest(a).item() == pytest.approx(smallest(a), rel=1e-6, abs=0)


def test_a_decomposition_alone_does_not_reach_it() -> None:
    torch.manual_seed(0)
    matrices = [with_spectrum(torch.logspace(0, -12, 8, dtype=torch.float64), 20, 8) for _ in range(5)]
    errors = [abs(torch.linalg.svdvals(a)[-1].item() / smallest(a) - 1) for a in matrices]
    assert max(errors) > 1e-6
    exact = exact_dense(torch.linspace(0, 40, 16).round(), 32, 16)
    assert refined_smallest(exact).item() == pytest.approx(2.0**-40, rel=1e-8, abs=0)


@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_product_with_twice_the_digits(width: int) -> None:
    torch.manual_seed(0)
    a = torch.randn(5, width, dtype=torch.float64)
    v = torch.randn(width, dtype=torch.float64)
    a = torch.cat([a, -a, 1e-13 * torch.randn(5, 1, dtype=torch.float64)], dim=1)  # all but the last term cancels
    v = torch.cat([v, v, torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(exact_product(a, v), a[:, -1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("kappa", [1.0, 1e4, 1e8])
def test_matrices_that_need_no_refinement_keep_their_value(kappa: float) -> None:
    torch.manual_seed(0)
    a = with_spectrum(torch.tensor([1, 1 / kappa], dtype=torch.float64), 9, 2)
    assert refined_smallest(a).item() == pytest.approx(1 / kappa, rel=1e-7, abs=0)
