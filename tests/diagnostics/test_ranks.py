import math

import pytest
import torch

from preconditioned_attention.diagnostics import effective_rank, stable_rank
from tests.helpers.spectra import with_spectrum


@pytest.mark.parametrize("method", ["svd", "gram"])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=str)
def test_by_hand(shape: tuple[int, int], method: str) -> None:
    torch.manual_seed(0)
    a = with_spectrum(torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64), *shape)
    assert stable_rank(a, method=method).value.item() == pytest.approx(1.5, rel=1e-9)
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert effective_rank(a, method=method).value.item() == pytest.approx(math.exp(entropy), rel=1e-9)


@pytest.mark.parametrize("function", [stable_rank, effective_rank])
def test_between_one_and_the_rank(function) -> None:
    assert function(torch.eye(5)).value.item() == pytest.approx(5.0)
    assert function(torch.ones(6, 3)).value.item() == pytest.approx(1.0)
    values = function(torch.randn(2, 3, 7, 4)).value
    assert values.shape == (2, 3)
    assert ((values >= 1) & (values <= 4)).all()
    assert function(1e-300 * torch.eye(5, dtype=torch.float64)).value.item() == pytest.approx(5.0)


@pytest.mark.parametrize("function", [stable_rank, effective_rank])
def test_what_is_not_defined_and_what_is_refused(function) -> None:
    a = torch.randn(3, 4, 2)
    a[0], a[1, 0, 0] = 0, torch.nan
    result = function(a)
    assert result.defined.tolist() == [False, False, True]
    assert result.value.isnan().tolist() == [True, True, False]
    assert (result.method, result.precision) == ("svd", torch.float64)
    with pytest.raises(ValueError, match=r"shape \(..., N, d\)"):
        function(torch.ones(3))
