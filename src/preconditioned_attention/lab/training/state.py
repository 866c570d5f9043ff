"""``TrainState``: model, optimizer, scheduler and step of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..tasks import Batch, Task
from .best import BestWeights
from .config import TrainConfig
from .randomness import Stream, derive_seed, seed_all
from .sharded_optimizer import check_sharded_optimizer
from .sharding import gather_weights, shard

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.scheduler import AcceleratedScheduler

Prepare = Callable[[nn.Module], nn.Module]


@dataclass(kw_only=True)
class TrainState:
    """A run in progress. ``step`` counts the optimizer steps taken; ``best`` is there with ``config.keep_best``.

    If the model is ``sharded``, ``whole`` is a copy of it on the CPU of the main process, which takes the weights at
    the end.
    """

    config: TrainConfig
    task: Task
    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: AcceleratedScheduler
    average: AveragedModel | None
    sharded: bool = False
    whole: nn.Module | None = None
    step: int = 0
    best: BestWeights | None = None

    @property
    def unwrapped(self) -> nn.Module:
        """The model that is trained, without the wrapper for several processes."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the averaged one if there is one."""
        return self.unwrapped if self.average is None else self.average.module

    def final_model(self) -> nn.Module:
        """The model that is evaluated, without Accelerate's wrappers, in evaluation mode.

        Of a sharded run, on the main process: an ordinary model on the CPU; on the others: the sharded model. Every
        process must call it.
        """
        if self.sharded:
            gather_weights(self.evaluated, self.whole)
            return (self.evaluated if self.whole is None else self.whole).eval()
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return (model if self.average is None else self.average.module).eval()

    def place(self, batch: Batch) -> Batch:
        """The batch on this process's device, its floating-point tensors in the type of the weights."""
        from accelerate.utils import recursively_apply, send_to_device

        batch = send_to_device(batch, self.accelerator.device)
        return recursively_apply(_to_double, batch) if self.config.precision == "float64" else batch


def build_state(
    config: TrainConfig, task: Task, accelerator: Accelerator, prepare: Prepare, *, fsdp: bool = False
) -> TrainState:
    """The state before the first step. ``prepare`` is called with the new model before the optimizer exists.

    The model is sharded with ``fsdp``, and where Accelerate's configuration says so.

    Raises:
        TypeError: ``prepare`` returned something else than a model.
        ValueError: the model cannot be sharded, or its optimizer cannot be used on a sharded one.
    """
    seed_all(derive_seed(config.seed, Stream.MODEL))
    model = prepare(task.build_model())
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepare must return the model (also when it changes it in place); got {model!r}")
    sharded, whole, average = fsdp or accelerator.is_fsdp2, None, None
    # A sharded model is moved block by block: whole, it may not fit the device.
    model.to(None if sharded else accelerator.device, torch.float64 if config.precision == "float64" else None)
    if config.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    if sharded:
        whole = copy.deepcopy(model) if accelerator.is_main_process else None
        for part in (model, *(() if average is None else (average.module,))):
            shard(part, accelerator)
    optimizer = task.make_optimizer(model, config.optimizer_settings)  # of the parts of a sharded model
    if sharded:
        check_sharded_optimizer(optimizer)
    scheduler = task.make_scheduler(optimizer, config.optimizer_settings)
    wrapped = _prepare(accelerator, model, optimizer, scheduler, sharded=sharded)
    return TrainState(
        config=config,
        task=task,
        accelerator=accelerator,
        model=wrapped[0],
        optimizer=wrapped[1],
        scheduler=wrapped[2],
        average=average,
        sharded=sharded,
        whole=whole,
    )


def _prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, *, sharded: bool
) -> tuple[Any, ...]:
    if not sharded:
        return accelerator.prepare(model, optimizer, scheduler)
    # In evaluation mode Accelerate adds automatic mixed precision only, and no wrapper for several processes.
    wrapped = accelerator.prepare_model(model, evaluation_mode=True)
    return wrapped, accelerator.prepare_optimizer(optimizer), accelerator.prepare_scheduler(scheduler)


def _to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
