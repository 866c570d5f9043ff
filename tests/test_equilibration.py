import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from preconditioned_attention import equilibrate
from preconditioned_attention.equilibration import default_eps, row_norms
from tests.helpers.explicit import diagonal_product, relative_error

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GRADIENTS = ["full", "stop"]


def unit_tolerance(dtype: torch.dtype, d: int) -> float:
    """How far a row's norm may be from 1: rounding of each entry, of the norm's sum, and of subnormal entries."""
    compute = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    info = torch.finfo(dtype)
    return info.eps / 2 + (d / 2 + 2) * compute / 2 + math.sqrt(d) * info.smallest_normal * info.eps / 2


def matrices(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("shape", [(5, 3), (1, 1), (2, 4, 7, 16), (2, 3, 2, 9, 5)], ids=str)
def test_against_the_diagonal_matrix(shape: tuple[int, ...], gradient: str) -> None:
    x, weight = matrices(*shape), torch.randn(*shape, dtype=torch.float64)
    y = equilibrate(x, gradient=gradient)
    expected = diagonal_product(x, constant=gradient == "stop")
    assert relative_error(y, expected) <= 1e-12
    (actual_grad,) = torch.autograd.grad((y * weight).sum(), x)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), x)
    # A row of one entry has a true gradient of zero: the absolute bound is for it.
    assert (actual_grad - expected_grad).norm() <= 1e-12 * expected_grad.norm() + 1e-14 * weight.norm()


def test_gradcheck_full() -> None:
    x = matrices(2, 3, 4, 5)
    gain = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: equilibrate(x), (x,))
    assert gradcheck(lambda x, g: equilibrate(x, gain=g), (x, gain))
    assert gradgradcheck(lambda x: equilibrate(x), (x,))


def test_stop_gives_the_gradient_with_c_frozen() -> None:
    x, weight = matrices(4, 6, 5), torch.randn(4, 6, 5, dtype=torch.float64)
    c = 1 / x.detach().norm(dim=-1, keepdim=True)
    (actual,) = torch.autograd.grad((equilibrate(x, gradient="stop") * weight).sum(), x)
    assert relative_error(actual, c * weight) <= 1e-14


def test_both_gradients_have_the_same_forward_bit_for_bit() -> None:
    x = torch.randn(3, 4, 50, 24)
    assert torch.equal(equilibrate(x), equilibrate(x, gradient="stop"))


def test_is_rms_norm_up_to_sqrt_d() -> None:
    x = torch.randn(6, 10, 24, dtype=torch.float64)
    assert relative_error(equilibrate(x) * math.sqrt(24), F.rms_norm(x, (24,), eps=0.0)) <= 1e-14


def test_gain_multiplies_every_row_zero_rows_included() -> None:
    x = matrices(2, 3, 4, 5)
    with torch.no_grad():
        x[0, 1, 2] *= 1e-13  # a zero row by the rule, with something in it
    gain = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    assert relative_error(equilibrate(x, gain=gain), diagonal_product(x, gain=gain)) <= 1e-14
    assert torch.equal(equilibrate(x, gain=gain)[0, 1, 2], 0.0 * x[0, 1, 2])


@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 9),
    d=st.integers(1, 96),
    seed=st.integers(0, 2**31),
    place=st.floats(0.0, 1.0),
)
def test_rows_of_every_size_become_unit_rows(dtype: torch.dtype, rows: int, d: int, seed: int, place: float) -> None:
    """From twice eps to the largest number of the dtype: no inf, no NaN, unit rows, finite gradients."""
    low, high = math.log2(2 * default_eps(dtype)), math.log2(torch.finfo(dtype).max) - 1e-3
    entries = torch.rand(rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1.0
    x = (entries / 2 * 2.0 ** (low + place * (high - low))).clamp_min(2 * default_eps(dtype)).to(dtype).requires_grad_()
    y = equilibrate(x)
    assert y.dtype == dtype
    assert (y.double().norm(dim=-1) - 1).abs().max() <= unit_tolerance(dtype, d)
    y.double().square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiny_rows_with_a_smaller_eps(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest subnormal
    x = torch.zeros(3, 8, dtype=dtype)
    x[:, 5] = torch.tensor([smallest, 4 * smallest, torch.finfo(dtype).smallest_normal], dtype=dtype)
    assert torch.equal(equilibrate(x, eps=0.0), (x != 0).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_row_of_largest_entries(dtype: torch.dtype) -> None:
    x = torch.full((2, 64), torch.finfo(dtype).max, dtype=dtype)
    assert (equilibrate(x).double() - 1 / 8).abs().max() <= torch.finfo(dtype).eps / 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_zero_rows_stay_zero_and_pass_their_gradient(dtype: torch.dtype, gradient: str) -> None:
    x = torch.randn(4, 6).to(dtype)
    x[1] = 0
    x.requires_grad_()
    y = equilibrate(x, gradient=gradient)
    y.sum().backward()
    assert torch.equal(y[1], torch.zeros(6, dtype=dtype))
    assert x.grad is not None
    assert torch.equal(x.grad[1], torch.ones(6, dtype=dtype))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_threshold_itself(dtype: torch.dtype) -> None:
    """At eps a row is a zero row, just above it is not."""
    eps = torch.tensor(default_eps(dtype), dtype=dtype)
    above = torch.nextafter(eps, torch.ones_like(eps)) if dtype.itemsize >= 4 else eps * (1 + torch.finfo(dtype).eps)
    x = torch.zeros(2, 3, dtype=dtype)
    x[0, 0], x[1, 0] = eps, above
    y = equilibrate(x, eps=eps.item())
    assert y[0, 0] == eps
    assert y[1, 0] == 1


def test_second_derivative_at_a_zero_row_is_finite() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(equilibrate(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    assert second.isfinite().all()


@given(seed=st.integers(0, 2**31), n=st.integers(1, 12))
def test_permutation_equivariance_and_idempotence(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 7, generator=generator, dtype=torch.float64)
    order = torch.randperm(n, generator=generator)
    assert torch.equal(equilibrate(x[order]), equilibrate(x)[order])
    assert relative_error(equilibrate(equilibrate(x)), equilibrate(x)) <= 1e-15


def test_lowers_kappa_where_row_norms_differ() -> None:
    """On matrices built for it only: where row norms are equal there is nothing to lower."""
    x = torch.randn(50, 8, dtype=torch.float64) * torch.logspace(0, 6, 50, dtype=torch.float64)[:, None]
    assert torch.linalg.cond(equilibrate(x)) < torch.linalg.cond(x) / 2
    assert torch.linalg.cond(equilibrate(equilibrate(x))) == pytest.approx(torch.linalg.cond(equilibrate(x)).item())


def test_nan_and_infinity_are_not_hidden() -> None:
    x = torch.ones(3, 4)
    x[0, 1], x[1, 2] = math.nan, math.inf
    y = equilibrate(x)
    assert y[0].isnan().all()
    assert y[1, 2].isnan()
    assert y[2].norm() == 1


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 4, 8)], ids=str)
def test_no_rows(shape: tuple[int, ...]) -> None:
    assert equilibrate(torch.ones(shape)).shape == shape


def test_autocast_changes_nothing() -> None:
    x = torch.randn(3, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = equilibrate(x)
    assert torch.equal(inside, equilibrate(x))


def test_compiles_vmaps_and_exports() -> None:
    x = torch.randn(4, 6, 8)
    expected = equilibrate(x)
    torch.testing.assert_close(torch.compile(equilibrate, fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.func.vmap(equilibrate)(x), expected)
    torch.testing.assert_close(
        torch.func.jacrev(lambda v: equilibrate(v))(x[0, 0]),
        torch.autograd.functional.jacobian(lambda v: v / v.norm(), x[0, 0]),
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"x must be float16, bfloat16, float32 or float64; got {dtype}"):
        equilibrate(torch.zeros(2, 3, dtype=dtype))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor; got list"),
        ({"x": torch.tensor(1.0)}, ValueError, "rows along its last axis"),
        ({"x": torch.ones(2, 2), "gradient": "none"}, ValueError, "gradient must be one of 'full', 'stop'; got 'none'"),
        ({"x": torch.ones(2, 2), "eps": -1}, ValueError, "eps must be finite and at least 0; got -1"),
        ({"x": torch.ones(2, 2), "gain": torch.ones(1)}, ValueError, "gain needs a head axis"),
        ({"x": torch.ones(3, 2, 2), "gain": torch.ones(2)}, ValueError, r"shape \(num_heads,\) = \(3,\); got \(2,\)"),
        ({"x": torch.ones(3, 2, 2), "gain": 0.5}, TypeError, "gain must be a floating-point tensor"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        equilibrate(**arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_norms(dtype: torch.dtype) -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6e4, 0.0]], dtype=dtype)
    assert row_norms(x).dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(row_norms(x).double(), x.double().norm(dim=-1), rtol=1e-7, atol=0.0)
