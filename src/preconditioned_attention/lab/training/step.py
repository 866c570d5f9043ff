"""One optimizer step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..tasks import Batch
from .errors import NonFiniteError
from .interruption import StopRequested
from .metrics import Record
from .randomness import Stream, derive_seed, seed_all
from .sharding import share_buffers
from .state import TrainState


def optimizer_step(state: TrainState, batches: Iterator[Batch]) -> Record:
    """Take one step; the record holds its number from 1, loss, gradient norm, learning rate and seconds.

    Raises:
        NonFiniteError: the loss or the gradient is not finite, on any process. Every process raises it, and the state
            is what it was before the step.
        StopRequested: ``batches`` raised it; likewise.
    """
    started = time.perf_counter()
    buffers = [(buffer, buffer.clone()) for buffer in state.model.buffers()]
    try:
        loss = _backward(state, batches)
    except StopRequested:  # raised by ``batches``
        _take_back(state, buffers)
        raise
    clip_norm = math.inf if state.config.clip_norm is None else state.config.clip_norm
    norm = float(state.accelerator.clip_grad_norm_(state.model.parameters(), clip_norm))  # of a DTensor: the whole one
    learning_rate = state.scheduler.get_last_lr()[0]
    if not math.isfinite(loss) or not (math.isfinite(norm) or _scaler_adapts(state)):
        _take_back(state, buffers)
        raise NonFiniteError(
            f"step {state.step + 1}: loss {loss}, gradient norm {norm}, at learning rate {learning_rate:g}. "
            "Try a lower learning rate, a longer warm-up, clip_norm, or precision 'float32'"
        )
    state.optimizer.step()
    state.scheduler.step()
    state.optimizer.zero_grad()
    if state.accelerator.num_processes > 1:  # so that every process evaluates, and a resumed run continues, with these
        share_buffers(state.unwrapped)
    if state.average is not None:
        state.average.update_parameters(state.unwrapped)
    state.step += 1
    return {
        "step": state.step,
        "loss": loss,
        "gradient_norm": norm,
        "learning_rate": learning_rate,
        "seconds": time.perf_counter() - started,
    }


def _take_back(state: TrainState, buffers: list[tuple[Tensor, Tensor]]) -> None:
    """Undo what the micro-batches of an unfinished step have changed: running statistics, and Accelerate's count."""
    for buffer, before in buffers:
        buffer.copy_(before)
    state.accelerator.step = state.step * state.config.accumulation_steps


def _backward(state: TrainState, batches: Iterator[Batch]) -> float:
    """Add up the gradients of the step's micro-batches; the mean loss over them and all processes."""
    config, accelerator = state.config, state.accelerator
    losses: list[Tensor] = []
    for micro_step in range(config.accumulation_steps):
        batch = state.place(next(batches))
        seed_all(derive_seed(config.seed, Stream.STEP, state.step, micro_step, accelerator.process_index))
        with accelerator.accumulate(state.model):
            loss = state.task.loss(state.model, batch)
            accelerator.backward(loss)
        losses.append(loss.detach())
    mean: Any = accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
    return mean.item()


def _scaler_adapts(state: TrainState) -> bool:
    """Whether a gradient scaler skips steps that overflow, and scales less afterwards."""
    scaler = state.accelerator.scaler
    return scaler is not None and scaler.get_scale() > 1.0
