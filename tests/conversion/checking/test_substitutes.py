import pytest
import torch
import torch.nn.functional as F

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.conversion.checking.substitutes import (
    PassThrough,
    ScaledValues,
    powers_of_two,
    with_class,
)
from preconditioned_attention.layers import Preconditioner


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "scale": 0.3}, {"enable_gqa": True}])
def test_open_lets_attention_through_and_keeps_it(options: dict) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    k, v = (k[:, :2], v[:, :2]) if "enable_gqa" in options else (k, v)
    c = Preconditioner(PreconditionConfig())
    with with_class({"a": c}, PassThrough) as opened:
        out = c.attend(q, k, v, **options)
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    assert torch.equal(out, expected)
    assert torch.equal(opened["a"].arrived[0], expected)
    assert opened["a"].attended
    assert type(c) is Preconditioner
    torch.testing.assert_close(c.attend(q, k, v, **options).norm(dim=-1), torch.ones(2, 4, 5))


def test_open_keeps_rows_as_they_came() -> None:
    c, rows = Preconditioner(PreconditionConfig()), torch.randn(2, 4, 5, 8)
    before = rows.clone()
    with with_class({"a": c}, PassThrough) as opened:
        assert c(rows) is rows
        rows.zero_()
    assert torch.equal(opened["a"].arrived[0], before)
    assert not opened["a"].attended


def test_other_values_leave_preconditioned_attention_as_it_is() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    c = Preconditioner(PreconditionConfig())
    expected = c.attend(q, k, v)
    with with_class({"a": c}, ScaledValues):
        assert torch.equal(c.attend(q, k, v), expected)


def test_powers_of_two() -> None:
    values = powers_of_two((4, 50, 1), torch.zeros(1, dtype=torch.bfloat16))
    assert values.dtype == torch.bfloat16
    assert set(values.flatten().tolist()) == {1.0, 2.0, 4.0, 8.0}
