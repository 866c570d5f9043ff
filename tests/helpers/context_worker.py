"""Two processes, connected by gloo, that share sequences, and compare with what one process computes on whole ones."""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import _attention as experimental
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import context_parallel_unshard, set_rotate_method
from torch.nn import functional as F

from preconditioned_attention import (
    PreconditionConfig,
    layers,
    precondition_,
    preconditioned_attention,
    preconditioned_flex_attention,
    preconditioned_varlen_attention,
)
from tests.helpers.deployment_models import LANGUAGE
from tests.helpers.dtensor_worker import connect, free_port
from tests.helpers.explicit import relative_error

TOKENS = 2
Attend = Callable[..., Tensor]


def tensors(tokens: int = 16) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k and v, the gain, and the weights of a loss; equal on every process."""
    torch.manual_seed(0)
    qkv = [torch.randn(2, heads, tokens, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    return qkv, torch.randn(4, dtype=torch.float64), torch.randn(2, 4, tokens, 8, dtype=torch.float64)


@contextmanager
def shared(mesh: DeviceMesh, buffers: list[Tensor], balanced: bool = True, axis: int = TOKENS) -> Iterator[None]:
    """`context_parallel` with and without its balance of the load."""
    experimental._cp_options.enable_load_balance = balanced
    with context_parallel(mesh, buffers=buffers, buffer_seq_dims=[axis] * len(buffers)):
        yield


def gradients(attend: Attend, qkv: list[Tensor], gain: Tensor, weights: Tensor) -> list[Tensor]:
    """The result, and the gradients of q, k, v and the gain."""
    leaves = [x.clone().requires_grad_() for x in (*qkv, gain)]
    out = attend(*leaves[:3], gain=leaves[3], enable_gqa=True)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def same_in_context(mesh: DeviceMesh, attend: Attend, balanced: bool = True) -> None:
    """Result and gradients; a gain's gradient is summed over the processes, as data parallelism sums it."""
    expected = gradients(attend, *tensors())
    qkv, gain, weights = tensors()
    with shared(mesh, [*qkv, weights], balanced):
        *actual, of_gain = gradients(attend, qkv, gain, weights)
        dist.all_reduce(of_gain)
        actual = context_parallel_unshard(mesh, actual, [TOKENS] * 4)
    for part, whole in zip((*actual, of_gain), expected, strict=True):
        assert relative_error(part, whole) <= 1e-13


def every_backend(mesh: DeviceMesh) -> None:
    for backend in ("auto", "flash", "composition", "reference"):
        for gradient in ("full", "stop"):
            for is_causal in (True, False):
                for balanced in (True, False):
                    options = {"backend": backend, "gradient": gradient, "is_causal": is_causal}
                    same_in_context(mesh, lambda *x, o=options, **y: preconditioned_attention(*x, **y, **o), balanced)


def both_rotations(mesh: DeviceMesh) -> None:
    for method in ("alltoall", "allgather"):
        set_rotate_method(method)
        same_in_context(mesh, lambda *x, **y: preconditioned_attention(*x, is_causal=True, **y))


def compiled_before_and_inside(mesh: DeviceMesh) -> None:
    """Code that was compiled outside is not run inside, and back."""
    torch._dynamo.reset()
    attend = torch.compile(
        lambda *x, **y: preconditioned_attention(*x, is_causal=True, **y), backend="aot_eager", fullgraph=True
    )
    for balanced in (True, False):
        same_in_context(mesh, attend, balanced)


def penalty(qkv: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """The gradient of the gradients' squared length."""
    out = preconditioned_attention(*qkv, is_causal=True, enable_gqa=True)
    grads = torch.autograd.grad((out * weights).sum(), qkv, create_graph=True)
    return torch.autograd.grad(sum((g * g).sum() for g in grads), qkv)


def second_derivatives(mesh: DeviceMesh) -> None:
    """Inside the context, and of distributed tensors."""
    qkv, _, weights = tensors()
    expected = penalty([x.clone().requires_grad_() for x in qkv], weights)
    parts = [distribute_tensor(x, mesh, [Shard(TOKENS)]).requires_grad_() for x in qkv]
    distributed = penalty(parts, distribute_tensor(weights, mesh, [Shard(TOKENS)]))
    with shared(mesh, [*qkv, weights]):
        found = penalty([x.clone().requires_grad_() for x in qkv], weights)
        actual = context_parallel_unshard(mesh, list(found), [TOKENS] * 3)
    for part, other, whole in zip(actual, distributed, expected, strict=True):
        assert relative_error(part, whole) <= 1e-12
        assert relative_error(other.full_tensor(), whole) <= 1e-12


def lengths_that_do_not_divide(mesh: DeviceMesh) -> None:
    qkv, gain, weights = tensors(tokens=7)
    expected = gradients(preconditioned_attention, qkv, gain, weights)[:4]
    with shared(mesh, [*qkv, weights], balanced=False):
        assert qkv[0].shape[TOKENS] == 4 - mesh.get_local_rank()
        actual = gradients(preconditioned_attention, qkv, gain, weights)[:4]
    mine = slice(0, 4) if mesh.get_local_rank() == 0 else slice(4, 7)
    for part, whole in zip(actual, expected, strict=True):
        assert relative_error(part, whole[:, :, mine]) <= 1e-13


def models(mesh: DeviceMesh) -> None:
    """A layer of ours and a class swap (timm), which attend by the function."""
    torch.manual_seed(0)
    vit = timm.models.vision_transformer.Attention(16, 2).double()
    precondition_(vit, PreconditionConfig(gain=1.5))
    layer = layers.MultiheadAttention(16, 4, num_kv_heads=2, dtype=torch.float64)
    for model, options in ((vit, {}), (layer, {"is_causal": True})):
        x = torch.randn(2, 16, 16, dtype=torch.float64)
        expected = model(x, **options)
        grads = torch.autograd.grad(expected.square().sum(), model.parameters())
        with shared(mesh, [x], axis=1):
            out = model(x, **options)
            parts = torch.autograd.grad(out.square().sum(), model.parameters())
            (whole,) = context_parallel_unshard(mesh, [out.detach()], [1])
        assert relative_error(whole, expected) <= 1e-13
        assert relative_error(summed(parts), summed(grads) / 2) <= 1e-13


def language_model(mesh: DeviceMesh) -> None:
    """An attention interface (transformers), with the hooks that Accelerate attaches for context parallelism."""
    from accelerate.big_modeling import _attach_context_parallel_hooks

    torch.manual_seed(0)
    model = LANGUAGE["llama"].converted(PreconditionConfig(gain=1.5)).model.double()
    _attach_context_parallel_hooks(model)
    tokens, places = torch.randint(50, (2, 16)), torch.arange(16).repeat(2, 1)
    mask = torch.ones(2, 16, dtype=torch.bool)
    expected = model(tokens, position_ids=places, attention_mask=mask).logits
    exact = torch.autograd.grad(expected.square().sum(), model.parameters())
    with shared(mesh, [tokens, places], axis=1):
        out = model(tokens, position_ids=places, attention_mask=mask).logits
        grads = torch.autograd.grad(out.square().sum(), model.parameters())
        (actual,) = context_parallel_unshard(mesh, [out.detach()], [1])
    assert relative_error(actual, expected) <= 1e-12
    assert relative_error(summed(grads), summed(exact) / 2) <= 1e-12
    model.set_attn_implementation("eager")
    with shared(mesh, [tokens, places], axis=1):
        refused("use attn_implementation='sdpa'", model, tokens, position_ids=places)


def summed(grads: Sequence[Tensor]) -> Tensor:
    """In one vector, because that of a key's bias is zero; summed over the two processes."""
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    return flat


def refusals(mesh: DeviceMesh) -> None:
    x = torch.randn(1, 2, 8, 4)
    cu_seq = torch.tensor([0, 4], dtype=torch.int32)
    packed = x[0, :, :4].transpose(0, 1)
    nested = torch.nested.nested_tensor([packed[:3], packed], layout=torch.jagged).transpose(1, 2)
    tokens = torch.randn(1, 8, 4)
    weighted = torch.nn.MultiheadAttention(4, 1, batch_first=True)
    unfused = timm.models.vision_transformer.Attention(4, 1)
    for model in (weighted, unfused):
        precondition_(model)
    unfused.fused_attn = False
    unlike_sdpa = [
        layers.LinearAttention(4, 2),
        layers.NystromAttention(4, 2),
        layers.CrossCovarianceAttention(4, 2),
        layers.ChannelGroupAttention(4, 2),
    ]
    with shared(mesh, [x]):
        alone = "would attend to this process's part of the sequence alone inside context_parallel"
        refused(alone, preconditioned_varlen_attention, packed, packed, packed, cu_seq, cu_seq, 4, 4)
        refused(alone, preconditioned_flex_attention, x, x, x)
        refused(alone, preconditioned_attention, nested, nested, nested)
        for layer in unlike_sdpa:
            refused(f"{type(layer).__name__} would attend", layer, tokens)
        refused("use need_weights=False", weighted, tokens, tokens, tokens)
        refused("use fused_attn=True", unfused, tokens)
        refused("attn_mask must be None", preconditioned_attention, x, x, x, torch.ones(4, 4, dtype=torch.bool))
        refused("as many queries as keys", preconditioned_attention, x, x[:, :, :2], x[:, :, :2], is_causal=True)
        refused("must be (B, H, tokens, head_dim)", preconditioned_attention, x[0], x[0], x[0])
        refused("backend must be", preconditioned_attention, x, x, x, backend="ring")
    assert preconditioned_flex_attention(x, x, x).shape == x.shape


def refused(message: str, function: Callable[..., object], *args: object, **options: object) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        function(*args, **options)


def distributed_sequences(mesh: DeviceMesh) -> None:
    """Tensors sharded along the tokens, passed as they are; the mask may have an axis of queries or not."""
    for tokens in (16, 7):
        qkv, gain, weights = tensors(tokens)
        masks = [None, torch.randn(tokens, tokens).double(), torch.randn(4, 1, tokens).double()]
        for mask, is_causal in ((masks[0], True), (masks[0], False), (masks[1], False), (masks[2], False)):
            for gradient in ("full", "stop"):
                options = {"is_causal": is_causal, "enable_gqa": True, "gradient": gradient}
                same_as_whole(mesh, [*qkv, gain] if mask is None else [*qkv, gain, mask], weights, options)


def same_as_whole(mesh: DeviceMesh, inputs: list[Tensor], weights: Tensor, options: dict[str, object]) -> None:
    placements = [[Shard(TOKENS)]] * 3 + [[Replicate()]] * (len(inputs) - 3)
    whole = [x.clone().requires_grad_() for x in inputs]
    parts = [distribute_tensor(x, mesh, p).requires_grad_() for x, p in zip(inputs, placements, strict=True)]
    out, expected = (
        preconditioned_attention(*x[:3], *x[4:], gain=x[3], **options)  # type: ignore[arg-type]
        for x in (parts, whole)
    )
    assert isinstance(out, DTensor)
    assert out.placements == (Shard(TOKENS),)
    exact = torch.autograd.grad((expected * weights).sum(), whole)
    grads = torch.autograd.grad((out * distribute_tensor(weights, mesh, [Shard(TOKENS)])).sum(), parts)
    for actual, wanted in zip((out, *grads), (expected, *exact), strict=True):
        assert relative_error(actual.full_tensor(), wanted) <= 1e-12


def meshes_of_two_axes(_: DeviceMesh) -> None:
    mesh = init_device_mesh("cpu", (2, 1))
    qkv, gain, _ = tensors()
    expected = preconditioned_attention(*qkv, is_causal=True, enable_gqa=True, gain=gain)
    tokens = Shard(TOKENS)
    for placements in (
        [tokens, Shard(1)],
        [Shard(1), tokens],
        [tokens, tokens],
        [Shard(0), tokens],
        [tokens, Replicate()],
    ):
        parts = [distribute_tensor(x, mesh, placements) for x in qkv]
        out = preconditioned_attention(*parts, is_causal=True, enable_gqa=True, gain=distribute_tensor(gain, mesh))
        assert relative_error(out.full_tensor(), expected) <= 1e-13


def distributed_tensors_in_context(_: DeviceMesh) -> None:
    """Tensors sharded along the tokens are in the order of the context; heads of tensor parallelism stay apart."""
    both = init_device_mesh("cpu", (2, 1), mesh_dim_names=("context", "heads"))
    whole, _, _ = tensors()
    expected = preconditioned_attention(*whole, is_causal=True, enable_gqa=True)
    for mesh, axis in ((both["context"], TOKENS), (both["heads"], 1)):
        qkv, _, _ = tensors()
        with shared(both["context"], qkv):
            parts = [DTensor.from_local(x, mesh, [Shard(axis)]) for x in qkv]
            out = preconditioned_attention(*parts, is_causal=True, enable_gqa=True).to_local()
            (actual,) = context_parallel_unshard(both["context"], [out], [TOKENS])
        assert relative_error(actual, expected) <= 1e-13


def restores_what_it_found(mesh: DeviceMesh) -> None:
    qkv, gain, weights = tensors()
    before = gradients(preconditioned_attention, qkv, gain, weights)
    same_in_context(mesh, preconditioned_attention)
    assert F.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention
    for now, then in zip(gradients(preconditioned_attention, qkv, gain, weights), before, strict=True):
        assert torch.equal(now, then)


def run_on_two(checks: list[Callable[[DeviceMesh], None]], limit_s: float = 420.0) -> None:
    """Two processes that make every check; raises what one of them raises."""
    processes = mp.spawn(_work, (free_port(), checks), nprocs=2, join=False)
    deadline = time.monotonic() + limit_s
    try:
        while not processes.join(timeout=1.0):
            assert time.monotonic() < deadline, f"two processes did not end within {limit_s} s"
    finally:
        for process in processes.processes:
            process.kill()


def _work(rank: int, port: int, checks: list[Callable[[DeviceMesh], None]]) -> None:
    connect(rank, 2, port)
    mesh = init_device_mesh("cpu", (2,))
    for check in checks:
        check(mesh)
    dist.destroy_process_group()
    os._exit(0)  # as in `dtensor_worker`
