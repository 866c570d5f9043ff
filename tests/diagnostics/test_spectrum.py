import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preconditioned_attention.diagnostics import singular_values
from tests.helpers.spectra import exact_dense, with_spectrum


@pytest.mark.parametrize("bits", [0, 10, 40])
@pytest.mark.parametrize("shape", [(32, 8), (8, 32), (8, 8)], ids=str)
@pytest.mark.parametrize("method", ["svd", "gram"])
def test_all_values_within_the_error_that_is_stated(bits: int, shape: tuple[int, int], method: str) -> None:
    exponents = torch.linspace(0, bits, 8).round().double()
    result = singular_values(exact_dense(exponents, *shape), method=method)
    assert ((result.value - 0.5**exponents).abs() <= result.error).all()
    assert result.error < 1e-9
    assert result.value[-1].item() == pytest.approx(2.0**-bits, rel=1e-6, abs=0)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_gram_and_svd_agree_within_their_errors(rows: int, columns: int, seed: int) -> None:
    a = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    svd, gram = singular_values(a), singular_values(a, method="gram")
    assert svd.value.shape == (3, min(rows, columns))
    assert ((svd.value - gram.value).abs() <= (svd.error + gram.error)[:, None]).all()
    torch.testing.assert_close(gram.value, svd.value, rtol=1e-6, atol=0)


def test_gram_says_where_it_was_not_safe() -> None:
    safe, unsafe = exact_dense(torch.tensor([0, 4]), 8, 2), exact_dense(torch.tensor([0, 20]), 8, 2)
    result = singular_values(torch.stack([safe, unsafe, unsafe]), method="gram")
    assert result.method == "gram (2 of 3 by svd: condition number above 6.7e+04)"
    assert singular_values(safe, method="gram").method == "gram"
    with pytest.raises(ValueError, match=r'"gram" computes in torch\.float64 only; got precision=torch\.float32'):
        singular_values(safe, method="gram", precision=torch.float32)


def test_gram_alone_would_have_been_wrong_there() -> None:
    torch.manual_seed(0)
    a = with_spectrum(torch.tensor([1, 1e-3, 1e-7], dtype=torch.float64), 12, 3)
    naive = torch.linalg.eigvalsh(a.mT @ a)[0].clamp_min(0).sqrt().item()
    assert naive != pytest.approx(1e-7, rel=1e-3, abs=0)
    assert singular_values(a, method="gram").value[-1].item() == pytest.approx(1e-7, rel=1e-6, abs=0)


def test_the_smallest_number_of_float64() -> None:
    tiny = 5e-324 * torch.eye(3, dtype=torch.float64)
    assert torch.equal(singular_values(tiny).value, torch.full((3,), 5e-324, dtype=torch.float64))


def test_what_is_not_finite_is_flagged_and_alone() -> None:
    a = torch.randn(2, 4, 3)
    a[0, 0, 0] = torch.nan
    for method in ("svd", "gram"):
        result = singular_values(a, method=method)
        assert result.defined.tolist() == [False, True]
        assert result.value[0].isnan().all()
        assert result.error.isnan().tolist() == [True, False]


def test_gradients_are_not_followed() -> None:
    a = torch.randn(4, 3, requires_grad=True)
    assert not singular_values(a).value.requires_grad
