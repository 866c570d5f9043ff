"""Matching the rows that a preconditioner was given with the rows of products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from .products import Product

_ROWS_AT_MOST = 2048
_DISTANCES_AT_ONCE = 2**24
_FEW = 8


@dataclass(frozen=True)
class Match:
    """The result of matching.

    Args:
        seen: how many rows are not zero.
        looked_at: how many of them were searched for.
        found: how many of these are rows of a product.
        alike: whether all rows of a head are equal, so that they cannot be distinguished.
        axes: for each product with some of them, by its index: the axis along which its rows lie.
        labeled: whether each head of the preconditioner is one head of the product; None: unknown.
    """

    seen: int
    looked_at: int
    found: int
    alike: bool
    axes: Mapping[int, int]
    labeled: bool | None

    @property
    def proven(self) -> bool:
        """Whether all of them were found."""
        return self.found == self.looked_at > 0


@dataclass(frozen=True)
class _Candidate:
    """A product's rows ``(batch tokens, d)``, if they lie along ``axis``."""

    index: int
    axis: int
    rows: Tensor
    batch: int
    tokens: int

    def places(self, number: int) -> Tensor:
        """``(batch, token, number)`` of every row, as the ``number``-th candidate."""
        ranges = (range(self.batch), range(self.tokens), (number,))
        return torch.cartesian_prod(*(torch.tensor(list(axis), device=self.rows.device) for axis in ranges))


def tolerance(dtype: torch.dtype) -> float:
    """The relative difference that a different order of summation may cause."""
    return min(1e3 * torch.finfo(dtype).eps, 0.05)


def match_rows(arrived: list[Tensor], products: Mapping[int, Product], num_heads: int | None) -> Match:
    """Search for the rows of ``arrived``, each ``(..., H, N, d)``, among those of ``products``.

    Zero rows, such as padding, are not searched for; of very many rows a sample is.

    Args:
        arrived: what the preconditioner was given, one tensor per call.
        products: by their index.
        num_heads: how many heads there should be; None: whether heads are kept apart is not checked.
    """
    widths = dict.fromkeys(tensor.shape[-1] for tensor in arrived)
    parts = [_match_width([t for t in arrived if t.shape[-1] == width], products, num_heads) for width in widths]
    labels = [part.labeled for part in parts]
    return Match(
        seen=sum(part.seen for part in parts),
        looked_at=sum(part.looked_at for part in parts),
        found=sum(part.found for part in parts),
        alike=all(part.alike for part in parts),
        axes={i: axis for part in parts for i, axis in part.axes.items()},
        labeled=False if False in labels else None if None in labels else True,
    )


def _match_width(arrived: list[Tensor], products: Mapping[int, Product], num_heads: int | None) -> Match:
    """:func:`match_rows` for rows of one width."""
    rows, heads = _arrived(arrived)
    seen = len(rows)
    if seen > _ROWS_AT_MOST:
        chosen = torch.randperm(seen, generator=torch.Generator().manual_seed(0))[:_ROWS_AT_MOST].to(rows.device)
        rows, heads = rows[chosen], heads[chosen]
    alike = all(map(_tokens_alike, arrived))
    candidates = list(_candidates(products, arrived[0].shape[-1]))
    if not candidates or not len(rows):
        return Match(seen, len(rows), 0, alike, {}, None)
    pool = torch.cat([candidate.rows for candidate in candidates])
    nearest, distance, second = _nearest(rows, pool)
    norms = rows.norm(dim=-1)
    allowed = tolerance(arrived[0].dtype) * norms.clamp(min=norms.square().mean().sqrt())  # values cancel in short rows
    hit, alone = distance <= allowed, second > allowed
    source = torch.cat([torch.full((len(c.rows),), i, device=rows.device) for i, c in enumerate(candidates)])[nearest]
    used = [candidates[i] for i in source[hit].unique().tolist()]
    labeled = None
    if num_heads is not None and num_heads > 1 and bool(hit.all() & alone.any()):
        # Where heads share values (multi-query attention), the first token of causal attention is equal in all heads.
        places = torch.cat([candidate.places(i) for i, candidate in enumerate(candidates)])[nearest]
        in_batch = all(prod(arrived[0].shape[:-3]) * num_heads == candidate.batch for candidate in used)
        axes = (0, 2) if in_batch else (0, 1, 2)
        sizes = [(candidate.batch, candidate.tokens, len(candidates)) for candidate in used]
        steps = {axis: {step for size in sizes for step in _divisors(size[axis])} for axis in axes}
        labeled = _one_head_each(heads[alone], places[alone], num_heads, steps)
    return Match(seen, len(rows), int(hit.sum()), alike, {c.index: c.axis for c in used}, labeled)


def same_numbers(arrived: list[Tensor], products: Mapping[int, Product]) -> bool:
    """Whether the entries of ``arrived`` are those of a product in another order."""
    entries = torch.cat([rows.flatten() for rows in arrived]).double().sort().values
    close = tolerance(arrived[0].dtype) * entries.abs().max()
    others = (p.out.flatten().double().sort().values for p in products.values() if p.out.numel() == len(entries))
    return any(bool((entries - other).abs().max() <= close) for other in others)


def _arrived(arrived: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The rows that are not zero, and the head of each."""
    rows = torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in arrived]).double()
    heads = torch.cat([_head_of_each_row(tensor) for tensor in arrived])
    kept = rows.norm(dim=-1) > 0
    return rows[kept], heads[kept]


def _tokens_alike(tensor: Tensor) -> bool:
    """Whether every head has several tokens, and all the same."""
    differences = (tensor - tensor[..., :1, :]).norm(dim=-1)
    return tensor.shape[-2] > 1 and bool((differences <= tolerance(tensor.dtype) * tensor.norm(dim=-1)).all())


def _head_of_each_row(tensor: Tensor) -> Tensor:
    count = tensor.shape[-3] if tensor.dim() > 2 else 1
    heads = torch.arange(count, device=tensor.device)
    return heads[:, None].expand(count, tensor.shape[-2]).expand(*tensor.shape[:-3], -1, -1).flatten()


def _candidates(products: Mapping[int, Product], width: int) -> Iterator[_Candidate]:
    """Every axis of a product that has ``width`` entries."""
    for i, product in products.items():
        out = _without_padding(product.out, width) if product.fused else product.out
        for axis in (-1,) if product.fused else range(-1, -1 - out.dim(), -1):
            if out.shape[axis] == width:
                rows = out.double().movedim(axis, -1)
                rows = rows if rows.dim() > 1 else rows[None]
                yield _Candidate(i, axis, rows.reshape(-1, width), prod(rows.shape[:-2]), rows.shape[-2])


def _without_padding(out: Tensor, width: int) -> Tensor:
    """The first ``width`` columns, if the others are zero: heads are padded for fused kernels on CUDA."""
    return out[..., :width] if out.shape[-1] > width and not out[..., width:].any() else out


def _nearest(rows: Tensor, pool: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each row the index of the nearest one in ``pool``, the distance, and that of the second nearest.

    `cdist` subtracts squares, which loses small distances; so rows are centered, and the nearest few compared again.
    """
    center = pool.mean(dim=0)
    rows, pool = rows - center, pool - center
    at_once, few = max(1, _DISTANCES_AT_ONCE // len(pool)), min(_FEW, len(pool))
    nearest = torch.cat([torch.cdist(part, pool).topk(few, largest=False).indices for part in rows.split(at_once)])
    distances, order = (rows[:, None] - pool[nearest]).norm(dim=-1).sort(dim=-1)
    second = distances[:, 1] if few > 1 else torch.full_like(distances[:, 0], torch.inf)
    return nearest.gather(-1, order)[:, 0], distances[:, 0], second


def _divisors(number: int) -> list[int]:
    return [step for step in range(1, number + 1) if number % step == 0]


def _one_head_each(heads: Tensor, places: Tensor, num_heads: int, steps: Mapping[int, set[int]]) -> bool:
    """Whether the place of a row in the product determines its head.

    The axes of a product are folded from batch, heads and tokens in an unknown order, so every digit of a place is
    tried, ``(place // step) % base``. Those that depend on the head alone must distinguish all heads.

    Args:
        heads: of each row.
        places: ``(batch, token, product)`` of each row.
        num_heads: how many heads.
        steps: of each axis of a place that may determine the head; not of tokens if heads are folded into the batch.
    """
    if int(heads.max()) >= num_heads:
        return False
    labels = torch.zeros(num_heads, dtype=torch.int64, device=heads.device)
    bases = [base for base in _divisors(num_heads) if base > 1]
    for axis, step, base in ((a, s, b) for a in steps for s in sorted(steps[a]) for b in bases):
        digits = places[:, axis] // step % base
        low = torch.full_like(labels, base).scatter_reduce(0, heads, digits, "amin")
        high = torch.full_like(labels, -1).scatter_reduce(0, heads, digits, "amax")
        if bool((low == high).all()):
            labels = (labels * base + low).unique(return_inverse=True)[1]
    return len(labels.unique()) == num_heads
