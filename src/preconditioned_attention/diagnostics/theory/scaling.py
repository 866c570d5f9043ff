"""The optimal row scaling of a small matrix, by a convex solver."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._extras import require
from ...equilibration import row_norms
from ..condition import condition_number

_TOLERANCE = 1e-10  # requested of the solver; the dual bound shows what it reached


@dataclass(frozen=True, kw_only=True)
class RowScaling:
    """The best row scaling found for one matrix `A`, ``(N, d)``, with bounds.

    Attributes:
        scaling: the diagonal of `D`, ``(N,)``, float64, none negative, at most 1. An entry of 0 leaves a row out: the
            least condition number is then approached by positive scalings but not reached.
        kappa: `kappa(D A)`, by a float64 SVD: no less than the least condition number.
        lower: no row scaling has a smaller condition number than this, up to rounding: from the dual problem.
        equilibrated: `kappa(C A)` with `C = diag(1 / ||A_i||_2)`, for comparison.
        method: the solver and its status.
        precision: of the arithmetic.
    """

    scaling: Tensor
    kappa: float
    lower: float
    equilibrated: float
    method: str
    precision: torch.dtype


def optimal_row_scaling(matrix: Tensor) -> RowScaling:
    r"""The diagonal `D >= 0` with the least `kappa(D A)`, for a small matrix.

    With `M(w) = A^T diag(w) A`, `w = D^2`, it is the semidefinite program `min t: I <= M(w) <= t I, w >= 0`, whose
    least `t` is `kappa^2` (S. Boyd, L. El Ghaoui, E. Feron, V. Balakrishnan, "Linear Matrix Inequalities in System and
    Control Theory", 1994, chapter 3). The square makes it hard for a solver, so it is solved around `C A = U S V^T`,
    congruently, with all numbers of size 1:

        min tau:    U^T diag(w) U >= s_min^2 S^-2,    S U^T diag(w) U S <= tau s_max^2 I,    w >= 0

    which holds for wide matrices as well. The returned scaling was checked by an SVD in float64 and is never worse
    than `C`; the solver's dual variables, made feasible, give the bound ``lower``.

    Args:
        matrix: ``(N, d)``. Time and memory grow steeply with the smaller side: on one CPU core a few seconds at
            64 x 32, a minute at 128 x 64.

    Raises:
        TypeError: complex or integer input.
        ValueError: more or fewer than two axes, an empty matrix, entries that are not finite, or a matrix that is
            singular to the precision of its dtype, which has no condition number to improve.
        RuntimeError: the solver failed.
        ImportError: without the extra ``theory`` (cvxpy).
    """
    if isinstance(matrix, Tensor) and matrix.dim() != 2:
        raise ValueError(f"matrix must have shape (N, d); got {tuple(matrix.shape)}. Call once per matrix")
    _check_regular(matrix)
    wide = matrix.detach().to("cpu", torch.float64)
    norms = row_norms(wide)
    kept = norms > 0
    rows = wide[kept] / norms[kept, None]
    equilibrated = _kappa(rows)
    weights, lower, method = _solve(rows)
    kappa = _kappa(weights.sqrt()[:, None] * rows)
    if not kappa < equilibrated:
        weights, kappa, method = torch.ones_like(weights), equilibrated, f"{method}; C itself was no worse"
    relative = weights.sqrt() * (norms[kept].min() / norms[kept])
    scaling = torch.ones_like(norms)
    scaling[kept] = relative / relative.max()
    return RowScaling(
        scaling=scaling,
        kappa=kappa,
        lower=min(lower, kappa),
        equilibrated=equilibrated,
        method=method,
        precision=torch.float64,
    )


def _check_regular(matrix: Tensor) -> None:
    known = condition_number(matrix)
    if not known.defined:
        why = "is singular to the precision of its dtype" if known.numerically_singular else "is not finite"
        raise ValueError(f"matrix must be finite and of full rank; this one {why}, so no row scaling conditions it")


def _kappa(matrix: Tensor) -> float:
    values = torch.linalg.svdvals(matrix)
    return (values[0] / values[-1]).item()


def _solve(rows: Tensor) -> tuple[Tensor, float, str]:
    """Weights `w` (maximum 1), the lower bound of the dual, and what solved it."""
    cvxpy = require("cvxpy", extra="theory")
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    relative = values / values[0]
    floor = (relative[-1] / relative).square().numpy()
    weighted = (left * relative).numpy()
    w, tau = cvxpy.Variable(len(rows), nonneg=True), cvxpy.Variable()
    constraints = [
        left.numpy().T @ cvxpy.diag(w) @ left.numpy() >> cvxpy.diag(floor),
        tau * torch.eye(len(values)).numpy() >> weighted.T @ cvxpy.diag(w) @ weighted,
    ]
    problem = cvxpy.Problem(cvxpy.Minimize(tau), constraints)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")  # the bound says how inaccurate
        try:
            # The numbers are of size 1 already: Clarabel's own scaling of them was seen to break down at d = 32.
            tolerances = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), _TOLERANCE)
            problem.solve(solver=cvxpy.CLARABEL, equilibrate_enable=False, **tolerances)
        except cvxpy.error.SolverError as error:
            raise RuntimeError(f"Clarabel failed on a matrix of shape {tuple(rows.shape)}: {error}") from error
    if w.value is None:
        raise RuntimeError(f"Clarabel found no scaling for a matrix of shape {tuple(rows.shape)}: {problem.status}")
    weights = torch.from_numpy(w.value).clamp_min(0)
    lower = _dual_bound([c.dual_value for c in constraints], left, relative, floor)
    return weights / weights.max(), lower, f"semidefinite program by Clarabel: {problem.status}"


def _dual_bound(duals: list[Any], left: Tensor, relative: Tensor, floor: Any) -> float:
    """The dual is `max <Z1, floor>: trace Z2 = 1, u_i^T Z1 u_i <= (S u_i)^T Z2 (S u_i), Z1, Z2 >= 0`.

    A solver's dual variables satisfy this nearly. Made so exactly, they bound every scaling from below.
    """
    z1, z2 = (_nearest_positive(torch.from_numpy(dual)) for dual in duals)
    allowed = torch.einsum("ni,ij,nj->n", left * relative, z2 / z2.trace(), left * relative)
    used = torch.einsum("ni,ij,nj->n", left, z1, left)
    tau = (allowed / used).min() * (z1.diagonal() * torch.from_numpy(floor)).sum()
    bound = tau.sqrt() / relative[-1]
    return bound.item() if bound > 1 else 1.0


def _nearest_positive(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp_min(0)) @ vectors.mT
