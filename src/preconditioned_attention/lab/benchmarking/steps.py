"""Time of whole training steps of converted models relative to the plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ..._extras import require
from ...config import PreconditionConfig
from ...conversion import precondition_
from .attention import Row, peak_bytes
from .memory import saved_bytes
from .shapes import MONITORED, STEPS, Shape
from .timing import time_against_first

Loss = Callable[[nn.Module], Tensor]


def _vision(name: str, shape: Shape, device: str) -> tuple[nn.Module, Loss]:
    model = require("timm", extra="vision").create_model(name, num_classes=1000)
    images, labels = torch.randn(shape.batch, 3, 224, 224, device=device), torch.arange(shape.batch, device=device)
    return model.to(device), lambda model: nn.functional.cross_entropy(model(images), labels)


def _gpt2_small(shape: Shape, device: str) -> tuple[nn.Module, Loss]:
    transformers = require("transformers", extra="language")
    config = transformers.GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, use_cache=False)
    tokens = torch.randint(0, config.vocab_size, (shape.batch, shape.length), device=device)
    return transformers.GPT2LMHeadModel(config).to(device), lambda model: model(tokens, labels=tokens).loss


MODELS: dict[str, Callable[[Shape, str], tuple[nn.Module, Loss]]] = {
    "step-vit-s": partial(_vision, "vit_small_patch16_224"),
    "step-vit-b": partial(_vision, "vit_base_patch16_224"),
    "step-swin-b": partial(_vision, "swin_base_patch4_window7_224"),
    "step-xcit-m24": partial(_vision, "xcit_medium_24_p16_224"),
    "step-davit-b": partial(_vision, "davit_base"),
    "step-gpt2": _gpt2_small,
    MONITORED.name: partial(_vision, "vit_small_patch16_224"),
}
"""Functions that build the model and the loss of a step, by the name of its shape."""


def measure_step(shape: Shape, *, device: str, seconds: float) -> Iterator[Row]:
    """Time forward, backward and AdamW of the plain model and of its conversions with both gradients, in float32.

    Raises:
        ValueError: ``shape`` is not one of ``STEPS``.
        ImportError: the model's library is not installed.
    """
    if shape not in STEPS:
        raise ValueError(f"no model for shape {shape.name!r}; there are {', '.join(s.name for s in STEPS)}")
    plain, loss = MODELS[shape.name](shape, device)
    models = {"plain": plain}
    for gradient in ("full", "stop"):
        models[gradient] = copy.deepcopy(plain)
        precondition_(models[gradient], PreconditionConfig(gradient=gradient), strict=True)
    steps = {name: partial(take_step, model, make_optimizer(model), loss) for name, model in models.items()}
    for name, timing in time_against_first(steps, seconds=seconds).items():
        yield Row(
            shape=shape.name, batch=shape.batch, heads=shape.heads, length=shape.length, keys=shape.keys,
            head_dim=shape.head_dim, dtype="float32", mode="eager", measured="training step", candidate=name,
            turns=timing.turns, median_ms=timing.median_seconds * 1e3,
            ratio_p20=timing.ratio_p20, ratio_p50=timing.ratio_p50, ratio_p80=timing.ratio_p80,
            saved_bytes=saved_bytes(partial(loss, models[name])), peak_bytes=peak_bytes(steps[name]),
        )  # fmt: skip


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Put the model into training mode and return the optimizer of the measured steps."""
    return torch.optim.AdamW(model.train().parameters(), lr=1e-5)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss) -> None:
    """Forward, backward, update."""
    optimizer.zero_grad()
    loss(model).backward()
    optimizer.step()
