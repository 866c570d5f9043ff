import math

import pytest
import torch

from preconditioned_attention import equilibrate
from preconditioned_attention.diagnostics import condition_number, explain, mean_direction_share, row_norm_spread


def explained(a: torch.Tensor) -> str:
    balanced = equilibrate(a)
    return explain(
        kappa_before=condition_number(a).value.item(),
        kappa_after=condition_number(balanced).value.item(),
        spread=row_norm_spread(a).value.item(),
        mean_direction_share=mean_direction_share(a).value.item(),
    )


def orthogonal(n: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]


@pytest.mark.parametrize(("long", "short"), [(1.0, 0.5), (8.0, 1e-3), (1e4, 1e-4)])
def test_uneven_rows_fall_by_the_factor_computed_by_hand(long: float, short: float) -> None:
    # Half of the rows are +-long e_1, half +-short e_2, rotated: s = sqrt(n) long and sqrt(n) short, so kappa is
    # long / short; unit rows make it 1.
    torch.manual_seed(0)
    a = torch.zeros(12, 2, dtype=torch.float64)
    a[:6, 0], a[6:, 1] = long, short
    a = a * torch.randn(12, 1).sign() @ orthogonal(2)
    assert condition_number(a).value.item() == pytest.approx(long / short, rel=1e-9)
    assert condition_number(equilibrate(a)).value.item() == pytest.approx(1.0, rel=1e-9)
    assert f"C divides kappa by {long / short:.3g}" in explained(a)


def test_uneven_rows_of_a_matrix_that_stays_ill_conditioned() -> None:
    # Unit rows at angles +-t to e_1 have kappa = cot t. Now one of them is shortened.
    t, length = 0.1, 0.1
    unit = torch.tensor([[math.cos(t), math.sin(t)], [math.cos(t), -math.sin(t)]], dtype=torch.float64)
    a = unit * torch.tensor([[1.0], [length]], dtype=torch.float64)
    # Two rows u, l w with <u, w> = cos 2t: eigenvalues of the Gram matrix by hand.
    trace, determinant = 1 + length**2, length**2 * math.sin(2 * t) ** 2
    root = math.sqrt(trace**2 / 4 - determinant)
    by_hand = math.sqrt((trace / 2 + root) / (trace / 2 - root))
    assert condition_number(a).value.item() == pytest.approx(by_hand, rel=1e-9)
    assert condition_number(equilibrate(a)).value.item() == pytest.approx(1 / math.tan(t), rel=1e-9)
    assert f"C divides kappa by {by_hand * math.tan(t):.3g}" in explained(a)


@pytest.mark.parametrize("uneven", [0.001, 0.5])
def test_nearly_parallel_rows_stay_and_the_words_say_why(uneven: float) -> None:
    torch.manual_seed(0)
    directions = torch.randn(1, 8, dtype=torch.float64) + 1e-3 * torch.randn(64, 8, dtype=torch.float64)
    a = (1 + uneven * torch.rand(64, 1, dtype=torch.float64)) * directions
    before, after = condition_number(a).value, condition_number(equilibrate(a)).value
    assert (before / after).item() == pytest.approx(1.0, abs=0.09)
    words = explained(a)
    assert "about as it was" in words
    assert "The rows are nearly parallel (the mean row is 100.0% as long as the rows are)" in words
    assert ("little to act on" if uneven < 0.1 else "not what makes this head ill-conditioned") in words


def test_uneven_rows_that_are_not_the_cause() -> None:
    words = explain(kappa_before=70, kappa_after=72, spread=0.66, mean_direction_share=0.2)
    assert words == (
        "C leaves kappa about as it was, from 70 to 72. Row norms differ by 66%, but that is not what makes this head "
        "ill-conditioned."
    )


def test_worse_and_singular() -> None:
    worse = explain(kappa_before=10, kappa_after=20, spread=0.5, mean_direction_share=0.2)
    assert worse.startswith("C multiplies kappa by 2, from 10 to 20")
    both = explain(kappa_before=math.nan, kappa_after=math.nan, spread=0.001, mean_direction_share=1.0)
    assert "both singular" in both
    assert "nearly parallel" in both
    repaired = explain(kappa_before=math.nan, kappa_after=3.0, spread=2.0, mean_direction_share=0.2)
    assert repaired.startswith("A is singular to the precision that A was computed in; kappa of C A is 3.")
    lost = explain(kappa_before=3.0, kappa_after=math.nan, spread=2.0, mean_direction_share=0.2)
    assert "C A is singular" in lost


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("kappa_before", 0.5), ("kappa_after", math.inf), ("spread", -1.0), ("spread", math.nan)),
        *(("mean_direction_share", 1.1), ("mean_direction_share", math.nan)),
    ],
)
def test_impossible_numbers_are_named(name: str, value: float) -> None:
    good = {"kappa_before": 2.0, "kappa_after": 1.0, "spread": 0.5, "mean_direction_share": 0.5}
    with pytest.raises(ValueError, match=name):
        explain(**good | {name: value})
