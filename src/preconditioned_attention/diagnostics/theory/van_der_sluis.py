r"""Row equilibration is within `sqrt(N)` of the best row scaling.

Statement. Let `A` be `N x d` of full rank, tall or wide, without zero rows, `C = diag(1 / ||A_i||_2)`. Then

    kappa(C A) <= ||C A||_2 min_D kappa(D A) <= sqrt(N) min_D kappa(D A)

over all invertible diagonal `D`. (A. van der Sluis, "Condition numbers and equilibration of matrices", Numerische
Mathematik 14, 1969, for a family of norms; here for singular values, with the proof that the code relies on.)

Proof. Put `B = D A`. Rows of `B` are no longer than `||B||_2`, and `C A = E B` with `E = diag(1 / ||B_i||_2)` up to
signs, so every entry of `E` is at least `1 / ||B||_2`. Multiplication by `E` shrinks the smallest singular value at
most by the smallest entry of `E` (`||E B x|| >= min E ||B x||` if `A` is tall, `||B^T E y|| >= s_min(B) ||E y||` if
it is wide): `s_min(C A) >= s_min(B) / ||B||_2 = 1 / kappa(B)`. And `||C A||_2 <= ||C A||_F = sqrt(N)`.

A zero row changes neither side; `N` then counts the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...equilibration import row_norms
from ..condition import condition_number
from ..spectrum import normalized
from .inequality import Inequality, full_rank
from .scaling import optimal_row_scaling


def row_equilibration_bound(matrices: Tensor, minimum: Tensor | None = None) -> Inequality:
    """`kappa(C A) <= sqrt(N) min_D kappa(D A)`: ``(..., N, d) -> (...)``.

    Args:
        matrices: ``(..., N, d)``. `N` counts rows that are not zero.
        minimum: ``(...)``, `min_D kappa(D A)` where it is known, or `kappa(D A)` of any one `D`: the inequality holds
            for each. None: by :func:`optimal_row_scaling`, matrix by matrix, for small ones.

    Raises:
        TypeError: complex or integer input.
        ValueError: fewer than two axes, an empty matrix, a ``minimum`` of another shape; without ``minimum``, a matrix
            that :func:`optimal_row_scaling` refuses.
        ImportError: without ``minimum``, if the extra ``theory`` is missing.
    """
    before = condition_number(matrices)
    if minimum is None:
        flat = matrices.reshape(-1, *matrices.shape[-2:])
        best = torch.tensor([optimal_row_scaling(matrix).kappa for matrix in flat], dtype=torch.float64)
        minimum = best.view(before.value.shape).to(matrices.device)
    if minimum.shape != before.value.shape:
        raise ValueError(f"minimum must have shape {tuple(before.value.shape)}; got {tuple(minimum.shape)}")
    scaled, _, _ = normalized(matrices)
    norms = row_norms(scaled)
    after = condition_number(scaled / torch.where(norms > 0, norms, 1.0)[..., None])
    right = (norms > 0).sum(dim=-1).to(torch.float64).sqrt() * minimum
    return Inequality(
        statement="kappa(C A) <= sqrt(N) min_D kappa(D A)",
        source="A. van der Sluis, Numerische Mathematik 14, 1969; proof in theory/van_der_sluis.py",
        left=after.value,
        right=right,
        holds=~(after.lower > right),
        assumptions=(full_rank(before, "A"),),
    )
