import math

import pytest
import torch
from torch import Tensor

from preconditioned_attention import equilibrate
from preconditioned_attention.equilibration import default_eps
from preconditioned_attention.ops.rows import cpu, formula, precondition_rows_
from preconditioned_attention.ops.rows.formula import eps_is_negligible

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["one pass", "plain", "for a compiler"])
def path(request, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways to do the row work: the fused operators, the formula, and what a compiler for CPUs sees."""
    if request.param == "plain":
        monkeypatch.setattr(cpu, "precondition_rows_", formula.precondition_rows_)
        monkeypatch.setattr(cpu, "tangent", lambda dy, y: formula.tangent(dy, y).to(y.dtype))
    if request.param == "for a compiler":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return request.param


def heads(dtype: torch.dtype, *shape: int) -> Tensor:
    """(B, H, N, d) as the kernel lays it out: (B, N, H, d) in memory."""
    return torch.randn(*shape, dtype=torch.float64).to(dtype).transpose(1, 2)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_lse_and_norms(dtype: torch.dtype, path: str) -> None:
    a, lse = heads(dtype, 2, 5, 3, 8), torch.randn(2, 3, 5, dtype=wide(dtype))
    y, new_lse = a.clone(), lse.clone()
    norms = precondition_rows_(y, new_lse, default_eps(dtype))
    exact = a.double().norm(dim=-1)
    rounding = torch.finfo(dtype).eps + 4 * torch.finfo(wide(dtype)).eps  # the result's, and the norm's
    assert (y.dtype, new_lse.dtype, norms.dtype) == (dtype, wide(dtype), wide(dtype))
    torch.testing.assert_close(y.double(), a.double() / exact[..., None], rtol=rounding, atol=rounding / 100)
    torch.testing.assert_close(norms.double(), exact, rtol=4 * torch.finfo(wide(dtype)).eps, atol=0)
    torch.testing.assert_close(new_lse.double(), lse.double() + exact.log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", ["zero", "below eps", "largest"])
def test_rows_that_need_care(dtype: torch.dtype, place: str, path: str) -> None:
    a = heads(dtype, 1, 4, 2, 8)
    value = {"zero": 0.0, "below eps": default_eps(dtype) / 8, "largest": torch.finfo(dtype).max / 2}[place]
    a[0, 1, 2] = value
    lse = torch.randn(1, 2, 4, dtype=wide(dtype))
    y, new_lse = a.clone(), lse.clone()
    norms = precondition_rows_(y, new_lse, default_eps(dtype))
    rounding = torch.finfo(dtype).eps + 4 * torch.finfo(wide(dtype)).eps  # the results', and the norms'
    torch.testing.assert_close(y, equilibrate(a), rtol=rounding, atol=0)
    assert y.isfinite().all()
    assert new_lse.isfinite().all()
    if place == "largest":
        log_norm = math.log(torch.finfo(dtype).max / 2) + math.log(8) / 2
        assert (new_lse - lse)[0, 1, 2].item() == pytest.approx(log_norm, rel=1e-5)
    else:
        assert torch.equal(y[0, 1, 2], a[0, 1, 2])
        assert new_lse[0, 1, 2] == lse[0, 1, 2]
        assert norms[0, 1, 2] == 1


def test_overflowed_rows_among_others(path: str) -> None:
    a, lse = heads(torch.float32, 2, 5, 3, 8), torch.randn(2, 3, 5)
    a[0, 1, 2] *= 1e25
    a[1, :, 4] = 3e38  # its norm is beyond float32
    a[1, 2, 3] = 0
    y, new_lse = a.clone(), lse.clone()
    norms = precondition_rows_(y, new_lse, 1e-12)
    exact = a.double().norm(dim=-1)
    exact[1, 2, 3] = 1
    torch.testing.assert_close(y.double(), a.double() / exact[..., None], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(new_lse.double(), lse.double() + exact.log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norms, exact.float(), rtol=1e-6, atol=0)


def test_a_custom_eps_below_what_squares_can_hold(path: str) -> None:
    a = torch.full((1, 1, 2, 4), 1e-30)
    precondition_rows_(a, torch.zeros(1, 1, 2), 1e-35)
    assert torch.equal(a, torch.full((1, 1, 2, 4), 0.5))


def test_nan_is_not_hidden(path: str) -> None:
    a = torch.randn(1, 2, 3, 4)
    a[0, 1, 2, 3] = math.nan
    precondition_rows_(a, torch.zeros(1, 2, 3), 1e-12)
    assert a[0, 1, 2].isnan().all()
    assert a.isnan().sum() == 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["kernel", "expanded", "one number", "gaps", "other"])
def test_tangent(dtype: torch.dtype, layout: str, path: str) -> None:
    y = equilibrate(heads(dtype, 2, 5, 3, 8))
    dy = heads(dtype, 2, 5, 3, 8)
    if layout == "expanded":
        dy = dy[:, :, :1, :1].expand(y.shape)
    elif layout == "one number":
        dy = dy[:1, :1, :1, :1].expand(y.shape)
    elif layout == "gaps":
        y, dy = (torch.cat([x, x], dim=-1)[..., : x.shape[-1]] for x in (y, dy))
    elif layout == "other":
        dy = dy.contiguous()
    g = cpu.tangent(dy, y)
    exact = dy.double() - y.double() * (dy.double() * y.double()).sum(dim=-1, keepdim=True)
    assert g.dtype == dtype
    torch.testing.assert_close(g.double(), exact, rtol=torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


def test_which_eps_may_be_neglected() -> None:
    assert all(eps_is_negligible(default_eps(dtype), dtype) for dtype in DTYPES)
    assert not eps_is_negligible(0.1, torch.float16)
    assert not eps_is_negligible(1e-6, torch.float64)


def test_empty(path: str) -> None:
    assert precondition_rows_(torch.zeros(0, 2, 3, 4), torch.zeros(0, 2, 3), 1e-12).shape == (0, 2, 3)
