"""Context parallelism: sequences sharded over processes, by `context_parallel` or as distributed tensors.

No row of `C A` depends on another, so a process that holds a part of the queries needs all keys and values and nothing
else. On CUDA PyTorch rotates them around a ring inside `scaled_dot_product_attention`. Where its ring does not support
a call, and for a backend that was asked for by name, they are gathered, their gradients are summed over the processes,
and any backend attends to them. The causal mask compares places in the whole sequence, because PyTorch gives
every process one part from the front and one from the back where it balances the load.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import AttentionInputs
from .replaced import SDPA

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

_MODULE = "torch.distributed.tensor.experimental."
_TOKENS = 2  # the axis of (B, H, N, d) that `context_parallel` shards


def context_mesh() -> DeviceMesh | None:
    """The processes that share a sequence inside `torch.distributed.tensor.experimental.context_parallel`.

    Only what `context_parallel` puts in the place of `scaled_dot_product_attention` knows them.
    """
    wrapper: Any = F.scaled_dot_product_attention
    if wrapper is SDPA or not str(getattr(wrapper, "__module__", "")).startswith(_MODULE):
        return None
    names = wrapper.__code__.co_freevars
    mesh: DeviceMesh = wrapper.__closure__[names.index("device_mesh")].cell_contents
    return mesh


def ring_supports(inputs: AttentionInputs) -> bool:
    """Whether PyTorch's ring computes the call: it has CUDA's kernels, and balances the load of causal masks alone.

    Compiled it raised an `AssertionError` in PyTorch 2.11.
    """
    eager_on_cuda = inputs.q.device.type == "cuda" and not torch.compiler.is_compiling()
    return eager_on_cuda and (inputs.is_causal or not _is_balanced())


def refuse_context_parallel(name: str, instead: str = "preconditioned_attention, which attends to all of it") -> None:
    """Raise inside `context_parallel`, where ``name`` would attend to this process's part of the sequence alone.

    Raises:
        ValueError: it is active; the message says to use ``instead``.
    """
    if context_mesh() is not None:
        raise ValueError(
            f"{name} would attend to this process's part of the sequence alone inside context_parallel; call it "
            f"outside on whole sequences, or use {instead}"
        )


def attend_in_context(inputs: AttentionInputs, mesh: DeviceMesh, attend: Callable[[AttentionInputs], Tensor]) -> Tensor:
    """`C A` of this process's queries; every process calls it with its parts of q, k and v.

    Raises:
        ValueError: the inputs are not those of self-attention or cross-attention over (B, H, N, d) without a mask.
    """
    inputs.check_shapes()
    _check(inputs)
    q_tokens, k_tokens = _whole_lengths(inputs, mesh)
    q = _as_shard(inputs.q, mesh, q_tokens)
    k, v = (all_tokens(_as_shard(x, mesh, k_tokens)) for x in (inputs.k, inputs.v))
    mask = causal_mask(q, k_tokens) if inputs.is_causal else None
    return attend(replace(inputs, k=k, v=v, attn_mask=mask, is_causal=False, gathered=True))


def _check(inputs: AttentionInputs) -> None:
    q, k, v = inputs.q, inputs.k, inputs.v
    if not q.dim() == k.dim() == v.dim() == 4:
        raise ValueError(f"q, k and v must be (B, H, tokens, head_dim) inside context_parallel; got {tuple(q.shape)}")
    if inputs.attn_mask is not None:
        raise ValueError(
            "attn_mask must be None inside context_parallel, where keys of other processes have no column in it; use "
            "is_causal=True, or call it outside on whole sequences"
        )
    if inputs.is_causal and q.shape[_TOKENS] != k.shape[_TOKENS]:
        raise ValueError(
            f"is_causal=True needs as many queries as keys inside context_parallel; got {q.shape[2]} and {k.shape[2]}"
        )


def _whole_lengths(inputs: AttentionInputs, mesh: DeviceMesh) -> tuple[int, int]:
    """How many queries and keys all processes hold: the last one may hold fewer than the others."""
    lengths = [inputs.q.shape[_TOKENS], inputs.k.shape[_TOKENS]]
    if torch.compiler.is_compiling():  # a compiler cannot read what other processes send
        return lengths[0] * mesh.size(), lengths[1] * mesh.size()
    sums = torch.tensor(lengths, device=inputs.q.device)
    torch.distributed.all_reduce(sums, group=mesh.get_group())
    queries, keys = sums.tolist()
    return queries, keys


def _as_shard(x: Tensor, mesh: DeviceMesh, tokens: int) -> DTensor:
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((*x.shape[:_TOKENS], tokens, x.shape[-1]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(x, mesh, [Shard(_TOKENS)], run_check=False, shape=shape, stride=stride)


def all_tokens(x: DTensor) -> Tensor:
    """The local part of keys or values, with the tokens of all processes; their gradients are sums of all."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    tokens = x.dim() - 2
    wanted = [Replicate() if p == Shard(tokens) else p for p in x.placements]
    gradient = [Partial() if p == Shard(tokens) else p for p in x.placements]
    part: Tensor = x.redistribute(placements=wanted).to_local(grad_placements=gradient)
    return part


def causal_mask(q: DTensor, keys: int) -> Tensor:
    """What this process's queries attend to, ``(queries, keys)``, boolean: keys at their place or before it."""
    from torch.distributed.tensor import Shard

    tokens, mesh = q.dim() - 2, q.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    axes = [i for i, p in enumerate(q.placements) if p == Shard(tokens)]
    processes, balanced = math.prod([mesh.size(i) for i in axes]), _is_balanced()
    places = token_order(q.shape[tokens], processes, balanced=balanced, device=q.device)
    for i in axes:
        size = -(-len(places) // mesh.size(i))  # as `Shard` cuts: the last parts are shorter or empty
        places = places[size * coordinate[i] :][:size]
    return places[:, None] >= token_order(keys, processes, balanced=balanced, device=q.device)


def token_order(tokens: int, processes: int, *, balanced: bool, device: torch.device) -> Tensor:
    """The places in the sequence of the tokens that all processes hold, those of the first process first."""
    places = torch.arange(tokens, device=device)
    if not balanced:
        return places
    chunks = places.view(2, processes, tokens // (2 * processes))
    return torch.stack([chunks[0], chunks[1].flip(0)], dim=1).flatten()


def _is_balanced() -> bool:
    """Whether PyTorch gave every process one part from the front and one from the back: what its ring assumes."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.experimental._attention import _cp_options

    ring = torch.ops.aten._scaled_dot_product_flash_attention.default in DTensor._op_dispatcher._custom_op_handlers
    return ring and bool(_cp_options.enable_load_balance)
