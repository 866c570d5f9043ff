"""The gain where heads are distributed over processes by tensor parallelism: every process has those of its heads.

A projection whose columns are sharded gives a process some of the heads, as a plain tensor (`ColwiseParallel`) or as a
part of a distributed one. The gain is then a parameter that is sharded over the same processes, like the weights.
"""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

from torch import Tensor, nn

from ..ops.inputs import PLAIN


def gain_of_heads(gain: nn.Parameter, x: Tensor) -> Tensor:
    """The values of ``gain``, ``(H,)``, for the heads of ``x``, ``(..., h, N, d)``.

    Raises:
        ValueError: ``x`` has some of the heads, and the gain is not sharded.
    """
    if type(gain) in PLAIN:
        heads, own = gain.shape[0], x.shape[-3] if x.dim() > 2 else None
        if own is not None and own != heads and type(x) in PLAIN and heads % own == 0 and _in_group():
            raise ValueError(
                f"gain has {heads} values and this process has {own} of the heads: tensor parallelism has shared out "
                "the heads and not the gain; call preconditioned_attention.conversion.shard_gains_(model) after it "
                "and before the optimizer is built"
            )
        return gain
    return gain.to_local() if is_distributed(gain) and type(x) in PLAIN else gain


def shard_gain(attention: nn.Module, preconditioner: nn.Module) -> bool:
    """Distribute a plain gain as the projections of ``attention`` are; False if they are not.

    Raises:
        ValueError: the heads do not divide among the processes.
    """
    gain = preconditioner._parameters.get("gain")
    weights = [p for p in attention.parameters() if p is not gain and is_distributed(p) and p.dim() > 1]
    if gain is None or type(gain) not in PLAIN or not weights:
        return False
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = weights[0].device_mesh
    axes = {i for weight in weights for i, p in enumerate(weight.placements) if isinstance(p, Shard)}
    processes = [mesh.size(i) for i in axes]
    if any(gain.shape[0] % count for count in processes):
        raise ValueError(
            f"the {gain.shape[0]} heads must divide among the processes of tensor parallelism, {processes}, so that "
            "each has the gain of its heads"
        )
    placements = [Shard(0) if i in axes else Replicate() for i in range(mesh.ndim)]
    sharded = distribute_tensor(gain.detach(), mesh, placements)
    preconditioner.register_parameter("gain", nn.Parameter(sharded, requires_grad=gain.requires_grad))
    return True


def is_distributed(x: object) -> TypeGuard[Any]:
    """Whether ``x`` is a distributed tensor."""
    if type(x) in PLAIN or "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def _in_group() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
