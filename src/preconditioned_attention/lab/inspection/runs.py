"""One measurement for each set of weights: random ones, a checkpoint, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ...conversion import build_model
from .checkpoint import load_checkpoint
from .inputs import Inputs, make_inputs
from .measurement import Inspection, measure_model

SEED = 0  # of random weights and of generated input
STAGES = ("building the model", "preparing the input", "running it and decomposing every head")


def inspect_weights(
    name: str,
    weights: Sequence[Path | None],
    *,
    layers: Sequence[str],
    images: Path | None,
    text: Path | None,
    on_stage: Callable[[str], None],
) -> tuple[Inputs, list[Inspection]]:
    """Build the model, load each of ``weights`` (None: random ones) and measure ``layers`` on the same input.

    Args:
        name: a name of timm, a model type of transformers, or a folder with config.json.
        weights: the files to load.
        layers: paths of the attention modules.
        images: a folder with images; None: generated input.
        text: a text file; None: generated input.
        on_stage: called at the beginning of each of the ``STAGES`` with what it does.
    """
    inspections = []
    for path in weights:
        on_stage(STAGES[0])
        torch.manual_seed(SEED)
        model = build_model(name)
        words = f"random initialization, seed {SEED}" if path is None else load_checkpoint(model, path)
        on_stage(STAGES[1])
        inputs = make_inputs(model, name, images=images, text=text, seed=SEED)
        on_stage(STAGES[2])
        inspections.append(measure_model(model, inputs, layers=layers, weights=words))
    return inputs, inspections
