import math

import pytest
import torch

from preconditioned_attention.diagnostics import attention_entropy


def test_by_hand() -> None:
    assert attention_entropy(torch.eye(4)).value.item() == 0.0
    assert attention_entropy(torch.full((3, 8), 0.125)).value.item() == pytest.approx(math.log(8))
    half = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    result = attention_entropy(half)
    assert result.value.item() == pytest.approx(math.log(2) / 2)
    assert result.precision == torch.float64
    assert attention_entropy(torch.randn(2, 3, 5, 7).softmax(dim=-1)).value.shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 1000])
@pytest.mark.parametrize("scale", [0.01, 5.0])
def test_softmax_of_any_dtype_is_accepted(dtype: torch.dtype, tokens: int, scale: float) -> None:
    scores = scale * torch.randn(4, tokens, tokens, generator=torch.Generator().manual_seed(0))
    exact = attention_entropy(scores.double().softmax(dim=-1)).value
    value = attention_entropy(scores.to(torch.promote_types(dtype, torch.float32)).softmax(dim=-1).to(dtype)).value
    torch.testing.assert_close(value, exact, rtol=10 * torch.finfo(dtype).eps, atol=1e-7)


def test_fully_masked_rows_are_left_out() -> None:
    weights = torch.full((4, 4), 0.25)
    weights[1] = 0
    assert attention_entropy(weights).value.item() == pytest.approx(math.log(4))
    none = attention_entropy(torch.zeros(2, 3, 4))
    assert not none.defined.any()
    assert none.value.isnan().all()


def test_what_is_not_finite_is_flagged() -> None:
    weights = torch.full((2, 4, 4), 0.25)
    weights[0, 0, 0] = torch.nan
    assert attention_entropy(weights).defined.tolist() == [False, True]


def test_what_is_no_distribution_is_refused() -> None:
    dropped = torch.nn.functional.dropout(torch.full((8, 8), 0.125), 0.5)
    for weights in (dropped, torch.randn(4, 4), torch.tensor([[1.5, -0.5]]), 0.5 * torch.eye(3)):
        with pytest.raises(ValueError, match="weights must be softmax matrices before dropout"):
            attention_entropy(weights)
    with pytest.raises(ValueError, match=r"shape \(..., N, d\)"):
        attention_entropy(torch.ones(3))
