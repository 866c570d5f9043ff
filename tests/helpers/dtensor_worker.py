"""Two processes, connected by gloo, that attend to distributed tensors and compare with the result of one process."""

import os
import re
import socket
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from preconditioned_attention import preconditioned_attention
from tests.helpers.explicit import relative_error


def connect(rank: int, world: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def same_on_every_process(mesh: DeviceMesh, placements: list[Placement], gain_placements: list[Placement]) -> None:
    """Result, placement and all gradients; both gradients of the method, with a gain, a mask and shared heads."""
    torch.manual_seed(0)
    heads = {"q": 4, "k": 2, "v": 2}
    qkv = [torch.randn(2, h, 5, 8, dtype=torch.float64, requires_grad=True) for h in heads.values()]
    gain = torch.randn(4, dtype=torch.float64, requires_grad=True)
    mask = torch.randn(4, 5, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    everywhere = [Replicate()] * mesh.ndim
    for gradient in ("full", "stop"):
        parts = [distribute_tensor(x, mesh, placements) for x in qkv]
        extra = [distribute_tensor(gain, mesh, gain_placements), distribute_tensor(mask, mesh, everywhere)]
        out = preconditioned_attention(*parts, extra[1], enable_gqa=True, gain=extra[0], gradient=gradient)
        expected = preconditioned_attention(*qkv, mask, enable_gqa=True, gain=gain, gradient=gradient)
        loss = (out * distribute_tensor(weight, mesh, placements)).sum()
        grads = torch.autograd.grad(loss, (*parts, *extra))
        exact = torch.autograd.grad((expected * weight).sum(), (*qkv, gain, mask))
        assert isinstance(out, DTensor)
        assert out.placements == tuple(placements)
        assert out.stride() == expected.stride()
        for actual, wanted in zip((out, *grads), (expected, *exact), strict=True):
            assert relative_error(actual.full_tensor(), wanted) <= 1e-14, (gradient, placements)


def merged_heads_need_no_copy(mesh: DeviceMesh) -> None:
    """What tensor parallelism does after attention: the layout of the local part and of the whole agree."""
    local = torch.randn(2, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)  # what a column-wise parallel projection gives
    q, k, v = (DTensor.from_local(x, mesh, [Shard(1)]) for x in local)
    out = preconditioned_attention(q, k, v)
    assert out.stride() == torch.empty(2, 6, 4, 8).transpose(1, 2).stride()
    assert out.transpose(1, 2).flatten(2).to_local().data_ptr() == out.to_local().data_ptr()


def heads_that_do_not_divide(mesh: DeviceMesh) -> None:
    q = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    gain = torch.randn(3, dtype=torch.float64)
    part = distribute_tensor(q, mesh, [Shard(1)])
    out = preconditioned_attention(part, part, part, gain=distribute_tensor(gain, mesh, [Replicate()]))
    assert out.shape == q.shape
    assert torch.equal(out.full_tensor(), preconditioned_attention(q, q, q, gain=gain))
    shared = distribute_tensor(q[:, :1], mesh, [Shard(1)])
    refused(ValueError, "must divide among the 2 processes", part, shared, shared, enable_gqa=True)


def refusals(mesh: DeviceMesh) -> None:
    x = torch.randn(2, 4, 6, 8)
    batch, heads, entries, whole = (
        distribute_tensor(x, mesh, [p]) for p in (Shard(0), Shard(1), Shard(3), Replicate())
    )
    refused(ValueError, "Shard() of a batch, head or token axis (0 to 2)", entries, entries, entries)
    refused(ValueError, "q, k and v must have the same placements", batch, heads, heads)
    refused(TypeError, "k must be a DTensor", batch, x, x)
    refused(TypeError, "gain must be a DTensor", batch, batch, batch, gain=torch.ones(4))
    refused(TypeError, "attn_mask must be a DTensor", batch, batch, batch, attn_mask=torch.zeros(6, 6))
    refused(ValueError, "every process would draw its own mask", whole, whole, whole, dropout_p=0.5)
    refused(ValueError, "the kernel has no dropout", batch, batch, batch, dropout_p=0.5, backend="flash")


def refused(error: type[Exception], message: str, *tensors: Tensor, **options: object) -> None:
    with pytest.raises(error, match=re.escape(message)):
        preconditioned_attention(*tensors, **options)


def work(rank: int, port: int, checks: list[Callable[[DeviceMesh], None]]) -> None:
    connect(rank, 2, port)
    mesh = init_device_mesh("cpu", (2,))
    for placements in (Shard(0), Shard(1), Replicate()):
        for gain_placements in (Shard(0), Replicate()):
            same_on_every_process(mesh, [placements], [gain_placements])
    for check in checks:
        check(mesh)
    dist.destroy_process_group()
    # Not through the interpreter's end: what DTensor keeps of the group outlives it, and a thread of gloo that then
    # still has a tensor to give back aborts the process (seen once in some dozens of runs on a busy machine).
    os._exit(0)
