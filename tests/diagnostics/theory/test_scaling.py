import math
import sys

import pytest
import torch

from preconditioned_attention.diagnostics import condition_number
from preconditioned_attention.diagnostics.theory import optimal_row_scaling
from tests.helpers.spectra import with_spectrum


def matrices() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    uneven = torch.logspace(0, 4, 20, dtype=torch.float64)[:, None] * normal(20, 6)
    zero_row = normal(10, 4)
    zero_row *= 1e10
    zero_row[3] = 0
    torch.manual_seed(1)
    return {
        "tall": normal(20, 6),
        "square": normal(6, 6),
        "wide": normal(6, 20),
        "uneven rows": uneven,
        "nearly parallel rows": normal(1, 6) + 1e-4 * normal(20, 6),
        "kappa 1e7": with_spectrum(torch.logspace(0, -7, 6, dtype=torch.float64), 20, 6),
        "a zero row": zero_row,
        "tiny": 1e-200 * normal(12, 4),
        "two columns": normal(30, 2),
        "float32, 64 x 16": normal(64, 16).float(),
    }


@pytest.mark.parametrize("name", list(matrices()))
def test_no_other_scaling_is_better_and_c_is_within_the_root_of_n(name: str) -> None:
    a = matrices()[name].double()
    best = optimal_row_scaling(matrices()[name])
    assert condition_number(best.scaling[:, None] * a).value.item() == pytest.approx(best.kappa, rel=1e-6)
    assert best.scaling.max() <= 1
    assert best.scaling.min() >= 0
    assert best.lower <= best.kappa <= best.equilibrated <= math.sqrt(len(a)) * best.lower
    assert best.kappa <= (1 + 1e-6) * best.lower  # the dual proves it
    # Every one of 1000: near the best, near C, near the identity and far from all.
    g = torch.Generator().manual_seed(2)
    width = torch.logspace(-3, 1, 1000, dtype=torch.float64)[:, None]
    lengths = a.norm(dim=-1)
    starts = torch.stack([best.scaling, 1 / lengths.where(lengths > 0, 1.0), torch.ones_like(lengths)])
    others = starts[torch.arange(1000) % 3] * (width * torch.randn(1000, len(a), generator=g).double()).exp()
    kappas = torch.linalg.svdvals(others[..., None] * a)
    assert (best.kappa <= (1 + 1e-9) * kappas[:, 0] / kappas[:, -1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 32), (96, 24), (24, 96), (130, 16)], ids=str)
@pytest.mark.parametrize("decades", [1, 3, 6])
def test_larger_matrices(shape: tuple[int, int], decades: int) -> None:
    torch.manual_seed(0)
    values = torch.logspace(0, -decades, min(shape), dtype=torch.float64)
    a = torch.logspace(-2, 2, shape[0], dtype=torch.float64)[:, None] * with_spectrum(values, *shape)
    best = optimal_row_scaling(a)
    assert best.kappa <= (1 + 1e-6) * best.lower
    assert best.kappa <= best.equilibrated <= math.sqrt(shape[0]) * best.lower


def test_an_orthonormal_matrix_with_scaled_rows_is_brought_back() -> None:
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(20, 5, dtype=torch.float64))[0]
    best = optimal_row_scaling(torch.logspace(-3, 3, 20, dtype=torch.float64)[:, None] * q)
    assert best.kappa == pytest.approx(1.0, abs=1e-6)
    assert best.equilibrated > 1.1


def test_two_rows_are_best_at_equal_length() -> None:
    # G. Forsythe and E. Straus, 1955: a 2 x 2 Gram matrix with a constant diagonal is scaled optimally.
    cosine = 0.8
    a = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    best = optimal_row_scaling(torch.tensor([[5.0], [0.1]]) * a)
    by_hand = math.sqrt((1 + cosine) / (1 - cosine))
    assert best.kappa == pytest.approx(by_hand, rel=1e-7)
    assert best.equilibrated == pytest.approx(by_hand, rel=1e-7)
    assert (best.scaling[0] / best.scaling[1]).item() == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1)], ids=str)
def test_one_row_or_column(shape: tuple[int, int]) -> None:
    assert optimal_row_scaling(torch.ones(shape)).kappa == pytest.approx(1.0, abs=1e-9)


def test_the_scaling_of_the_rows_does_not_matter() -> None:
    a = matrices()["tall"]
    scaled = torch.logspace(-5, 5, 20, dtype=torch.float64)[:, None] * a
    assert optimal_row_scaling(scaled).kappa == pytest.approx(optimal_row_scaling(a).kappa, rel=1e-6)


def test_what_has_no_condition_number_is_refused() -> None:
    with pytest.raises(ValueError, match="singular to the precision of its dtype"):
        optimal_row_scaling(torch.ones(5, 2))
    with pytest.raises(ValueError, match="is not finite"):
        optimal_row_scaling(torch.full((5, 2), torch.nan))
    with pytest.raises(ValueError, match="once per matrix"):
        optimal_row_scaling(torch.ones(2, 5, 2))
    with pytest.raises(TypeError, match=r"matrices must be a torch\.Tensor"):
        optimal_row_scaling([[1.0]])


def test_without_the_solver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match=r"preconditioned-attention\[theory\]"):
        optimal_row_scaling(torch.eye(2))
