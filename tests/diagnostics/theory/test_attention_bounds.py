import pytest
import torch

from preconditioned_attention.diagnostics.theory import (
    linear_attention_bound,
    linear_attention_head_bound,
    softmax_attention_bound,
    softmax_attention_head_bound,
)
from tests.helpers.theory_instances import COUNT, linear, normal, softmax, softmax_head, softmax_weights


@pytest.mark.parametrize("shape", [(12, 6, 3), (8, 6, 6), (6, 6, 6), (9, 4, 1)], ids=str)
def test_softmax_bound_holds_where_tokens_are_not_fewer_than_channels(shape: tuple[int, int, int]) -> None:
    result = softmax(*shape)
    assert result.holds.all()
    assert result.applies.float().mean() > 0.99
    assert (result.left <= result.right * (1 + 1e-6))[result.applies & ~result.left.isnan()].all()


def test_softmax_bound_fails_with_fewer_tokens_than_channels() -> None:
    result = softmax(4, 6, 3)
    assert not result.applies.any()
    assert 0 < (~result.holds).sum() < COUNT
    assert "N >= D >= d" in result.explain()
    assert "Contradicted" not in result.explain()


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6, 5), (12, 6, 3)], ids=str)
def test_softmax_head_bound_holds_for_any_shape(shape: tuple[int, int, int]) -> None:
    result = softmax_head(*shape)
    assert result.holds.all()
    assert result.applies.float().mean() > 0.99


@pytest.mark.parametrize("shape", [(12, 6, 6), (6, 6, 6), (20, 3, 3)], ids=str)
def test_linear_bound_holds_for_one_head(shape: tuple[int, int, int]) -> None:
    result = linear(linear_attention_bound, *shape)
    assert result.applies.all()
    assert result.holds.all()
    told = ~result.left.isnan()
    assert told.float().mean() > 0.99
    assert (result.left <= result.right)[told].all()


@pytest.mark.parametrize("shape", [(12, 6, 2), (4, 6, 3)], ids=str)
def test_linear_bound_fails_for_one_head_of_several(shape: tuple[int, int, int]) -> None:
    result = linear(linear_attention_bound, *shape)
    assert not result.applies.any()
    assert 0 < (~result.holds).sum() < COUNT


@pytest.mark.parametrize("shape", [(12, 6, 2), (12, 6, 6), (6, 6, 3)], ids=str)
def test_linear_head_bound_holds_for_one_head_of_several(shape: tuple[int, int, int]) -> None:
    result = linear(linear_attention_head_bound, *shape)
    assert result.applies.float().mean() > 0.999
    assert result.holds.all()
    assert (result.left <= result.right)[result.applies].all()


def test_the_counter_examples_of_the_docs() -> None:
    # Both projections are perfectly conditioned, but share one direction of two: K^T V has rank 1.
    x = torch.eye(3, dtype=torch.float64)
    first, second = x[:, [0, 1]], x[:, [0, 2]]
    linear_head = linear_attention_bound(x, first, first, second)
    assert linear_head.right == 1.0
    assert linear_head.left.isnan()
    assert not linear_head.holds
    # Two tokens in three channels; the head's values have rank 1.
    weights = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    head = softmax_attention_bound(weights, x[:2], second)
    assert head.right.item() == pytest.approx(2.0)
    assert not head.holds
    assert not head.applies


def test_kappa_of_the_softmax_matrix_is_not_bounded_by_the_weights() -> None:
    x = normal(6, 4, seed=0)[0]
    w_q, w_k = normal(4, 4, seed=1)[0], normal(4, 4, seed=2)[0]
    kappas = [torch.linalg.cond((s * x @ w_q @ w_k.mT @ x.mT).softmax(dim=-1)).item() for s in (1.0, 1e-1, 1e-2, 1e-3)]
    assert kappas[-1] > 100 * kappas[0]  # the condition numbers of X, W_Q and W_K are the same in all four


def test_a_bias_is_one_more_row() -> None:
    x, w, bias = normal(9, 3, seed=0)[0], normal(3, 3, seed=1)[0], normal(1, 3, seed=2)[0]
    ones = torch.cat([x, torch.ones(9, 1, dtype=torch.float64)], dim=-1)
    weights = normal(9, 9, seed=4)[0].softmax(dim=-1)
    result = softmax_attention_bound(weights, ones, torch.cat([w, bias]))
    assert result.left.item() == pytest.approx(torch.linalg.cond(weights @ (x @ w + bias)).item(), rel=1e-9)
    assert result.holds


def test_what_does_not_fit_is_named() -> None:
    x, w = torch.randn(6, 4), torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"x \(6, 4\) and w_k \(3, 2\) cannot be multiplied"):
        linear_attention_bound(x, w, w[:3], w)
    with pytest.raises(ValueError, match=r"one shape \(D, d\); got \(4, 2\), \(4, 2\), \(4, 1\)"):
        linear_attention_bound(x, w, w, w[:, :1])
    with pytest.raises(ValueError, match="weights must be square"):
        softmax_attention_bound(torch.ones(3, 6), x, w)
    with pytest.raises(ValueError, match=r"weights \(3, 3\) and v \(6, 4\)"):
        softmax_attention_head_bound(torch.ones(3, 3), x)


def test_rank_is_judged_by_the_dtype_that_was_given() -> None:
    centered = normal(9, 4, seed=0)[0].float()
    centered = centered - centered.mean(dim=-1, keepdim=True)  # rank 3 but for rounding
    w = normal(4, 2, seed=1)[0].float()
    result = softmax_attention_bound(softmax_weights(9)[0].float(), centered, w)
    assert "X has full rank" in result.explain()
    assert torch.linalg.cond(centered.double()) < 1e12  # float64 alone would have believed the rounding
