"""Random instances of the inequalities, 10,000 at a time, in float64.

``python -m tests.helpers.theory_instances`` prints what docs/conditioning.md reports of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from preconditioned_attention.diagnostics import condition_number
from preconditioned_attention.diagnostics.theory import (
    Inequality,
    linear_attention_bound,
    linear_attention_head_bound,
    row_equilibration_bound,
    softmax_attention_bound,
    softmax_attention_head_bound,
)
from tests.helpers.spectra import exact_dense

COUNT = 10_000


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax_weights(tokens: int) -> Tensor:
    """From nearly uniform to nearly one-hot."""
    scores = torch.logspace(-1, 1, COUNT, dtype=torch.float64)[:, None, None] * normal(tokens, tokens, seed=4)
    return scores.softmax(dim=-1)


def linear(bound: Callable[..., Inequality], tokens: int, channels: int, d: int) -> Inequality:
    return bound(normal(tokens, channels, seed=0), *(normal(channels, d, seed=seed) for seed in (1, 2, 3)))


def softmax(tokens: int, channels: int, d: int) -> Inequality:
    weights = softmax_weights(tokens)
    return softmax_attention_bound(weights, normal(tokens, channels, seed=0), normal(channels, d, seed=1))


def softmax_head(tokens: int, channels: int, d: int) -> Inequality:
    values = normal(tokens, channels, seed=0) @ normal(channels, d, seed=1)
    return softmax_attention_head_bound(softmax_weights(tokens), values)


def scaled_orthonormal(rows: int, columns: int) -> Tensor:
    """Matrices whose best row scaling is known: it brings back orthonormal columns (rows, if wide), kappa = 1."""
    q = torch.linalg.qr(normal(max(rows, columns), min(rows, columns), seed=0))[0]
    q = q if rows >= columns else q.mT
    spread = torch.logspace(-2, 1, COUNT, dtype=torch.float64)[:, None, None]
    return (spread * normal(rows, 1, seed=1)).clamp(-8, 8).exp() * q


def _print(shape: tuple[int, ...], inequality: Inequality) -> None:
    ratio = (inequality.left / inequality.right).nan_to_num(0).max().item()
    assumed = int(inequality.applies.sum())
    contradicted = int((inequality.applies & ~inequality.holds).sum())
    print(
        f"{inequality.statement} at {shape}: assumptions met by {assumed}, contradicted there {contradicted}; "
        f"fails for {int((~inequality.holds).sum())} in all, largest left/right {ratio:.3g}"
    )


def main() -> None:
    """Print the tables of docs/conditioning.md."""
    for bits in (0, 10, 20, 30, 40):
        shapes = [(64, 8), (8, 64), (8, 8), (32, 16)]
        errors = {}
        for method in ("svd", "gram"):
            matrices = [exact_dense(torch.linspace(0, bits, min(shape)).round(), *shape) for shape in shapes]
            values = [condition_number(matrix, method=method).value.item() for matrix in matrices]
            errors[method] = max(abs(value / 2**bits - 1) for value in values)
        print(f"kappa 2^{bits} = {2.0**bits:.3g}: largest relative error {errors}")
    for shape in ((12, 4), (40, 3), (5, 5), (4, 12)):
        _print(shape, row_equilibration_bound(scaled_orthonormal(*shape), torch.ones(COUNT, dtype=torch.float64)))
    for shape in ((12, 6, 3), (6, 6, 6), (4, 6, 3), (4, 8, 2)):
        _print(shape, softmax(*shape))
        _print(shape, softmax_head(*shape))
    for shape in ((12, 6, 6), (6, 6, 6), (12, 6, 2), (4, 6, 3)):
        _print(shape, linear(linear_attention_bound, *shape))
        _print(shape, linear(linear_attention_head_bound, *shape))


if __name__ == "__main__":
    main()
