"""Compare arms on a timm vision transformer, and measure its condition numbers before and after training.

    python examples/timm_model.py

Needs the extras ``vision`` and ``train``. Writes runs/timm-model/report.html.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

from preconditioned_attention import ConditionMonitor
from preconditioned_attention.lab.comparison import Prepare, compare
from preconditioned_attention.lab.data.digits import load_digits

BATCH_SIZE = 64
MODEL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "embed_dim": 48, "depth": 2, "num_heads": 3}


def make_run(steps: int) -> Callable[[Prepare, int, float], dict]:
    """The function that ``compare`` calls for every arm, seed and learning rate."""
    train, validation, test = (split.tensors for split in load_digits())

    def run(prepare: Prepare, seed: int, learning_rate: float) -> dict:
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **MODEL)
        prepare(model)  # applies the arm; before the optimizer is made
        before = measure_conditioning(model, validation[0][:16])
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        order = torch.Generator().manual_seed(seed)  # the same batches in every arm
        losses = []
        model.train()
        for _ in range(steps):
            chosen = torch.randint(len(train[0]), (BATCH_SIZE,), generator=order)
            loss = F.cross_entropy(model(train[0][chosen]), train[1][chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        after = measure_conditioning(model, validation[0][:16])
        return {
            "validation": accuracy(model, *validation),
            "test": accuracy(model, *test),
            "losses": losses,
            "conditioning": [row | {"moment": "initialization"} for row in before]
            + [row | {"moment": "end"} for row in after],
        }

    return run


@torch.no_grad()
def measure_conditioning(model: nn.Module, images: torch.Tensor) -> list[dict]:
    """Condition number and row-norm spread per layer, before and after C.

    In double precision, because nearly parallel rows are numerically singular in single precision.
    """
    copied = copy.deepcopy(model).double().eval()
    with ConditionMonitor(copied) as monitor:
        copied(images.double())
    return monitor.summary()


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that are classified correctly."""
    model.eval()
    return (model(images).argmax(dim=-1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("runs/timm-model"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from more
    compare(
        make_run(options.steps),
        seeds=range(options.seeds),
        learning_rates=[3e-3, 1e-2, 3e-2],
        output=options.output,
        title="timm ViT on digits",
        settings={"steps": options.steps, "batch_size": BATCH_SIZE, "model": MODEL},
        overwrite=True,
    )


if __name__ == "__main__":
    main()
