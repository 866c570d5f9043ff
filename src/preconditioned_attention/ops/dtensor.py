"""Distributed tensors: no row depends on another sample, head or query, so every process attends to its own part.

Supported are q, k and v with the same placements, each replicated or sharded along the batch, head or token axes (data,
tensor and context parallelism). Nothing is sent in the forward pass but the keys and values of sharded sequences, which
are gathered; the gradients of what processes share are summed over them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from .context_parallel import all_tokens, causal_mask
from .inputs import AttentionInputs


def attend_distributed(inputs: AttentionInputs, attend_local: Callable[[AttentionInputs], Tensor]) -> Tensor:
    """`C A` as a distributed tensor with the placements of q.

    Raises:
        TypeError: some of the tensors are distributed and some are not.
        ValueError: their meshes or placements need more than the local parts.
    """
    q, k, v = _distributed(inputs)
    _check_placements(q, k, v, inputs.dropout_p)
    heads = q.dim() - 3
    local = replace(
        inputs,
        q=q.to_local(),
        k=all_tokens(k),
        v=all_tokens(v),
        attn_mask=None
        if inputs.attn_mask is None
        else _local_part(inputs.attn_mask, q, _broadcast_axes(inputs.attn_mask, q)),
        gain=None if inputs.gain is None else _local_part(inputs.gain, q, {heads: 0}),
    )
    if Shard(heads + 1) in q.placements:
        local = replace(local, gathered=True)
        if inputs.is_causal:
            local = replace(local, is_causal=False, attn_mask=causal_mask(q, k.shape[heads + 1]))
    out = attend_local(local)
    shape = torch.Size((*q.shape[:-1], v.shape[-1]))
    return DTensor.from_local(
        out, q.device_mesh, q.placements, run_check=False, shape=shape, stride=_strides_like(out, shape)
    )


def _distributed(inputs: AttentionInputs) -> tuple[DTensor, DTensor, DTensor]:
    """q, k and v, if all tensors of the call are distributed over one mesh."""
    named = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "attn_mask": inputs.attn_mask, "gain": inputs.gain}
    found: dict[str, DTensor] = {}
    for name, x in named.items():
        if isinstance(x, DTensor):
            found[name] = x
        elif x is not None:
            raise TypeError(
                f"{name} must be a DTensor where another tensor of the call is one; got {type(x).__name__}. "
                f"Make it one with torch.distributed.tensor.distribute_tensor({name}, mesh, placements)"
            )
    meshes = {name: x.device_mesh for name, x in found.items()}
    if any(mesh != meshes["q"] for mesh in meshes.values()):
        raise ValueError(f"all tensors must be on one device mesh; got {meshes}")
    return found["q"], found["k"], found["v"]


def _check_placements(q: DTensor, k: DTensor, v: DTensor, dropout_p: float) -> None:
    placements = {"q": q.placements, "k": k.placements, "v": v.placements}
    heads = q.dim() - 3
    supported = all(type(p) is Replicate or (type(p) is Shard and p.dim <= heads + 1) for p in q.placements)
    if not supported or len(set(placements.values())) > 1:
        raise ValueError(
            f"q, k and v must have the same placements, each Replicate() or Shard() of a batch, head or token axis (0 "
            f"to {heads + 1}); got {placements}. Use x.redistribute(placements=...)"
        )
    shards = math.prod([q.device_mesh.size(i) for i, p in enumerate(q.placements) if p == Shard(heads)])
    if q.shape[heads] != k.shape[heads] and k.shape[heads] % shards:
        raise ValueError(
            f"the {k.shape[heads]} heads of k and v must divide among the {shards} processes that share them "
            f"where query heads share keys (enable_gqa)"
        )
    replicas = any(type(p) is Replicate and q.device_mesh.size(i) > 1 for i, p in enumerate(q.placements))
    if dropout_p > 0 and replicas:
        raise ValueError(
            f"dropout_p must be 0 where q, k and v are replicated, {q.placements}: every process would draw its own "
            f"mask. Shard them along the batch or the heads"
        )


def _broadcast_axes(mask: Tensor, q: DTensor) -> dict[int, int]:
    """The axes of q along which the mask has an axis of its own: q's -> the mask's."""
    missing = q.dim() - mask.dim()
    return {axis + missing: axis for axis, size in enumerate(mask.shape) if size != 1}


def _local_part(x: Tensor, q: DTensor, axes: dict[int, int]) -> Tensor:
    """The part of ``x`` that belongs to this process's part of q; ``axes``: q's axes -> those of ``x``.

    Where q is sharded along an axis that ``x`` has not, every process has a part of the gradient of all of ``x``.
    """
    assert isinstance(x, DTensor)
    wanted: list[Placement] = []
    gradient: list[Placement] = []
    for p in q.placements:
        own = Shard(axes[p.dim]) if isinstance(p, Shard) and p.dim in axes else None
        wanted.append(own or Replicate())
        gradient.append(own or (Partial() if isinstance(p, Shard) else Replicate()))
    part: Tensor = x.redistribute(placements=wanted).to_local(grad_placements=gradient)
    return part


def _strides_like(x: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense tensor of ``shape`` with its axes in the order in which ``x`` has them in memory."""
    inner_first = sorted(range(x.dim()), key=lambda axis: (x.stride(axis), -axis))
    steps = accumulate((shape[axis] for axis in inner_first[:-1]), operator.mul, initial=1)
    by_axis = dict(zip(inner_first, steps, strict=True))
    return tuple(by_axis[axis] for axis in range(x.dim()))
