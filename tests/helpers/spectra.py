"""Matrices whose singular values are known."""

import torch
from torch import Tensor


def with_spectrum(singular_values: Tensor, rows: int, columns: int) -> Tensor:
    """Random singular vectors; the spectrum is that of the factors up to rounding, about `1e-16 kappa` of `s_min`."""
    u = torch.linalg.qr(torch.randn(rows, len(singular_values), dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, len(singular_values), dtype=torch.float64))[0]
    return u @ singular_values.diag() @ v.T


def exact_dense(exponents: Tensor, rows: int, columns: int) -> Tensor:
    """Singular values `2**-exponents`, exactly, in a matrix without zeros: ``(rows, columns)``.

    `Q = I - (2 / n) 1 1^T` is orthogonal, and for `n` a power of two it holds in few bits; so does `Q_N D Q_d`, as long
    as the exponents span about 53 bits less twice those of `n`.
    """
    sides = [torch.eye(n, dtype=torch.float64) - 2 / n for n in (rows, columns)]
    diagonal = torch.zeros(rows, columns, dtype=torch.float64)
    diagonal.diagonal().copy_(torch.ldexp(torch.ones(len(exponents), dtype=torch.float64), -exponents.double()))
    return sides[0] @ diagonal @ sides[1]
