"""A model whose parameters, gradients and optimizer state are divided among the processes (FSDP2).

Every transformer block is a unit: its parameters are gathered before it runs, and freed afterwards. What a run computes
stays the same: parameters are gathered, and gradients averaged, in the type of the weights, and mixed precision is
automatic mixed precision as in an unsharded run. That moves twice the bytes of FSDP's own 16-bit policy.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .processes import describe_error

if TYPE_CHECKING:
    from accelerate import Accelerator


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Divide the parameters of ``model``, in place, by Accelerate's FSDP2 if it is configured, else by blocks.

    All processes have the weights of the first one afterwards, as in DistributedDataParallel.

    Raises:
        ValueError: FSDP2 cannot divide this model.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        _take_from_first(tensor.detach(), accelerator.device)
    try:
        (_shard_as_configured if accelerator.is_fsdp2 else _shard_blocks)(model, accelerator)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the model cannot be sharded: {describe_error(error)}. Train it without fsdp") from error


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that become units: of the classes in ``_no_split_modules``, which models of transformers have.

    Of other models: of the class that has the most parameters among those that occur more than once in one
    ``nn.ModuleList`` or ``nn.Sequential``; none if there is no such class.
    """
    named = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in named]
    if found:
        return found
    sizes: Counter[type[nn.Module]] = Counter()
    for container in model.modules():
        if isinstance(container, nn.ModuleList | nn.Sequential):
            kinds = Counter(type(entry) for entry in container)
            sizes.update({type(entry): _size(entry) for entry in container if kinds[type(entry)] > 1})
    if not sizes or max(sizes.values()) == 0:
        return []
    return [module for module in model.modules() if type(module) is max(sizes, key=lambda kind: sizes[kind])]


def gather_weights(model: nn.Module, whole: nn.Module | None) -> None:
    """Copy the weights and buffers of a sharded model into ``whole``, tensor by tensor; every process must call it."""
    from torch.distributed.tensor import DTensor

    targets = {} if whole is None else whole.state_dict()
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if whole is not None:
            targets[name].copy_(full)


def distribute_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """``tensor``, which every process has, divided as ``reference`` is; itself if that is not a distributed tensor."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(reference, DTensor):
        return tensor
    local = tensor.to(reference.device)
    return distribute_tensor(local, reference.device_mesh, reference.placements, src_data_rank=None)


def free_gathered(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass leaves gathered; afterwards parameters are divided again."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def share_buffers(model: nn.Module) -> None:
    """Give every process the floating-point buffers of the first one, such as running means."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            _take_from_first(buffer, buffer.device)


@contextlib.contextmanager
def process_group(*, alone: bool) -> Iterator[None]:
    """Within, a process that was not launched with others forms a group of one, which sharding needs."""
    if not alone or dist.is_initialized():
        yield
        return
    dist.init_process_group(rank=0, world_size=1, store=dist.HashStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _take_from_first(tensor: Tensor, device: torch.device) -> None:
    sent = tensor.to(device).contiguous()
    dist.broadcast(sent.view(-1).view(torch.uint8), src=0)  # as bytes: gloo does not know every type
    tensor.copy_(sent)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shard_blocks(model: nn.Module, accelerator: Accelerator) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in reversed(repeated_blocks(model)):  # inner ones first
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _shard_as_configured(model: nn.Module, accelerator: Accelerator) -> None:
    from accelerate.utils import fsdp2_prepare_model
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if plugin.transformer_cls_names_to_wrap is None and not getattr(model, "_no_split_modules", None):
        plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in repeated_blocks(model)})
    fsdp2_prepare_model(accelerator, model)
