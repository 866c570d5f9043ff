"""The explicit derivative against the formula; `tests/test_equilibration.py` tests what is documented."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck

from preconditioned_attention.equilibration import equilibrate_by_formula
from preconditioned_attention.ops.rows import autograd, cpu
from preconditioned_attention.ops.rows.autograd import equilibrate
from tests.helpers.explicit import relative_error

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GRADIENTS = ["full", "stop"]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "merged heads": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "channels first": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "gaps": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "expanded": lambda x: x[:, :1].expand(x.shape),
}


@pytest.fixture
def formulas(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the formula was called with."""
    seen: list[Tensor] = []
    monkeypatch.setattr(
        autograd,
        "equilibrate_by_formula",
        lambda x, **options: (seen.append(x), equilibrate_by_formula(x, **options))[1],
    )
    return seen


def formula(x: Tensor, *, gradient: str = "full", eps: float | None = None) -> Tensor:
    return equilibrate_by_formula(x, gradient=gradient, eps=eps, gain=None)


def grads(function: Callable[..., Tensor], x: Tensor, weight: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    y = function(leaf, **options)
    return y, torch.autograd.grad((y * weight).sum(), leaf)[0]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_equals_the_formula_in_every_layout(
    layout: str, gradient: str, fused: bool, monkeypatch: pytest.MonkeyPatch, formulas: list[Tensor]
) -> None:
    if not fused:  # as on a GPU
        monkeypatch.setattr(cpu, "supports", lambda x: False)
    x, weight = (LAYOUTS[layout](torch.randn(2, 3, 7, 5, dtype=torch.float64)) for _ in range(2))
    x[1, 0, 3] = 0
    y, dx = grads(equilibrate, x, weight, gradient=gradient)
    assert not formulas
    expected, expected_dx = grads(formula, x, weight, gradient=gradient)
    assert relative_error(y, expected) <= 1e-15
    assert relative_error(dx, expected_dx) <= 1e-14


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 2, 4, 6)], ids=str)
def test_any_number_of_axes(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    for ours, expected in zip(grads(equilibrate, x, weight), grads(formula, x, weight), strict=True):
        assert relative_error(ours, expected) <= 1e-14


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_rounding(dtype: torch.dtype, size: float, gradient: str) -> None:
    """`y` is kept rounded: what that does to the derivative is at most what rounding does to the derivative itself."""
    x, weight = (torch.randn(2, 3, 40, 24).to(dtype) for _ in range(2))
    x = x * size
    y, dx = grads(equilibrate, x, weight, gradient=gradient)
    exact, exact_dx = grads(formula, x.double(), weight.double(), gradient=gradient)
    by_formula, formula_dx = grads(formula, x, weight, gradient=gradient)
    unit = torch.finfo(dtype).eps
    assert relative_error(y.double(), exact) <= 2 * relative_error(by_formula.double(), exact) + unit / 100
    assert relative_error(dx.double(), exact_dx) <= 2 * relative_error(formula_dx.double(), exact_dx) + unit / 2


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_kept_for_the_backward_pass(gradient: str, dtype: torch.dtype) -> None:
    """The result, which the next layer keeps too, and one number per row; with a constant C the number alone."""
    x = torch.randn(2, 3, 7, 5).to(dtype).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        y = equilibrate(x, gradient=gradient)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert (y.untyped_storage().data_ptr() in storages) == (gradient == "full")
    storages.pop(y.untyped_storage().data_ptr(), None)
    assert sum(storages.values()) == 2 * 3 * 7 * torch.promote_types(dtype, torch.float32).itemsize


def test_derivatives_forward_and_of_the_derivative() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: equilibrate(x), (x,), check_forward_ad=True)
    v, w = (torch.randn(2, 3, 4, 5, dtype=torch.float64) for _ in range(2))
    second = []
    for function in (equilibrate, formula):
        for gradient in GRADIENTS:
            (first,) = torch.autograd.grad((function(x, gradient=gradient) * v).sum(), x, create_graph=True)
            used = first.requires_grad
            second.append(torch.autograd.grad((first * w).sum(), x)[0] if used else torch.zeros_like(x))
    assert relative_error(second[0], second[2]) <= 1e-14
    assert torch.equal(second[1], torch.zeros_like(x))  # C is a constant, so nothing is left of x
    with forward_ad.dual_level():
        tangents = [
            forward_ad.unpack_dual(function(forward_ad.make_dual(x.detach(), v), gradient="stop")).tangent
            for function in (equilibrate, formula)
        ]
    assert relative_error(tangents[0], tangents[1]) <= 1e-14


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_rows_whose_squares_overflow(gradient: str, formulas: list[Tensor]) -> None:
    x, weight = torch.randn(4, 8), torch.randn(4, 8)
    x[1] *= 1e25
    x[2] = 3e38  # its norm is beyond float32
    y, dx = grads(equilibrate, x, weight, gradient=gradient)
    assert not formulas
    exact, exact_dx = grads(formula, x.double(), weight.double(), gradient=gradient)
    assert relative_error(y.double(), exact) <= 1e-6
    torch.testing.assert_close(dx.double(), exact_dx, rtol=1e-5, atol=1e-30)


def test_nan_is_not_hidden() -> None:
    x = torch.randn(3, 4)
    x[1, 2] = math.nan
    assert equilibrate(x).isnan().sum(dim=-1).tolist() == [0, 4, 0]


@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float32, 0.0), (torch.float32, 1e-20), (torch.float16, 0.1), (torch.float64, 1e-6)]
)
def test_an_eps_for_the_formula(dtype: torch.dtype, eps: float, formulas: list[Tensor]) -> None:
    """Too small for squares, or so large that leaving `y <g, y>` in the gradient of zero rows would show."""
    x = torch.randn(3, 4).to(dtype)
    assert torch.equal(equilibrate(x, eps=eps), formula(x, eps=eps))
    assert len(formulas) == 1


def test_tracers_and_transforms_get_the_formula(formulas: list[Tensor]) -> None:
    x = torch.randn(4, 6, 8)
    torch.func.vmap(equilibrate)(x)
    torch.func.grad(lambda x: equilibrate(x).sum())(x)
    with FakeTensorMode() as mode:
        assert equilibrate(mode.from_tensor(x)).shape == x.shape
    assert len(formulas) == 3
    traced = torch.jit.trace(equilibrate, (x,))
    large = torch.full_like(x, 1e30)  # another branch than x takes
    torch.testing.assert_close(traced(large), formula(large))


def test_a_parameter_is_a_tensor(formulas: list[Tensor]) -> None:
    equilibrate(torch.nn.Parameter(torch.randn(3, 4))).sum().backward()
    assert not formulas
