"""The task ``notebook-gpt2``: the learning rate of a widely copied notebook that trains a small GPT-2 on TinyStories.

A public model card (``abhilash88/tinystories-slm-gpt``) reports a validation loss of 2.39 for it. Its 20,000 iterations
are micro-batches, of which 32 make an update, so it takes 625 updates; and its cosine has a floor above its peak, so
the learning rate rises to the end. Both are kept here, because that is what was run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .causal_lm import CausalLM
from .optimizer import OptimizerSettings, check_left_out

ITERATIONS, WARMUP_ITERATIONS, ITERATIONS_PER_UPDATE = 20_000, 1_000, 32
FIRST_FACTOR, LAST_FACTOR = 1 / 3, 5.0


@dataclass(frozen=True, kw_only=True)
class NotebookGPT2(CausalLM):
    """The ``notebook-gpt2`` task: :class:`CausalLM` with the notebook's rising learning rate.

    ``learning_rate`` is the one after warm-up, a fifth of the last; weight decay applies to every parameter.
    """

    name: ClassVar[str] = "notebook-gpt2"
    decay_vectors: ClassVar[bool] = True

    def make_scheduler(self, optimizer: Optimizer, settings: OptimizerSettings) -> LambdaLR:
        """The notebook's, at the last micro-batch of each update; stretched or shortened to the run's steps.

        Raises:
            ValueError: the run sets a warm-up, a floor or milestones.
        """
        check_left_out(settings, "warmup_steps", "final_learning_rate", "milestones")
        updates = ITERATIONS / ITERATIONS_PER_UPDATE

        def factor(step: int) -> float:
            iteration = (step + 1) * updates / settings.steps * ITERATIONS_PER_UPDATE - 1
            if iteration < WARMUP_ITERATIONS:
                return FIRST_FACTOR + (1 - FIRST_FACTOR) * iteration / WARMUP_ITERATIONS
            progress = min(1.0, (iteration - WARMUP_ITERATIONS) / (ITERATIONS - WARMUP_ITERATIONS))
            return LAST_FACTOR + (1 - LAST_FACTOR) * (1 + math.cos(math.pi * progress)) / 2

        return LambdaLR(optimizer, factor)
