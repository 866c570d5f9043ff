"""Compare arms in a plain training loop: a small torch.nn.TransformerEncoder on digits, one token per image row.

    python examples/plain_loop.py

Needs the extras ``vision`` (for the digits) and ``train``. Writes runs/plain-loop/report.html.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from preconditioned_attention.lab.comparison import Prepare, RunMetrics, compare
from preconditioned_attention.lab.data.digits import load_digits

BATCH_SIZE = 64
WIDTH = 32


class RowTransformer(nn.Module):
    """An image of 8 rows is a sequence of 8 tokens; the mean of the encoded tokens is classified."""

    def __init__(self) -> None:
        """Draw the weights from torch's global generator, which ``compare`` seeds."""
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(8, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores ``(B, 10)`` of images ``(B, 1, 8, 8)``."""
        return self.head(self.encoder(self.embed(images[:, 0]) + self.position).mean(dim=1))


def make_run(steps: int) -> Callable[[Prepare, int, float], RunMetrics]:
    """The function that ``compare`` calls for every arm, seed and learning rate."""
    train, validation, test = (split.tensors for split in load_digits())

    def run(prepare: Prepare, seed: int, learning_rate: float) -> RunMetrics:
        model = RowTransformer()
        prepare(model)  # applies the arm; before the optimizer is made
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
        order = torch.Generator().manual_seed(seed)  # the same batches in every arm
        losses, seconds = [], []
        for _ in range(steps):
            start = time.perf_counter()
            chosen = torch.randint(len(train[0]), (BATCH_SIZE,), generator=order)
            loss = F.cross_entropy(model(train[0][chosen]), train[1][chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - start)
        return RunMetrics(
            validation=accuracy(model, *validation),
            test=accuracy(model, *test),
            losses=losses,
            seconds_per_step=sorted(seconds)[len(seconds) // 2],
        )

    return run


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that are classified correctly."""
    model.eval()
    return (model(images).argmax(dim=-1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--output", type=Path, default=Path("runs/plain-loop"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from more
    compare(
        make_run(options.steps),
        seeds=range(options.seeds),
        learning_rates=[3e-3, 1e-2, 3e-2],
        output=options.output,
        title="nn.TransformerEncoder on digits",
        settings={"steps": options.steps, "batch_size": BATCH_SIZE, "width": WIDTH},
        overwrite=True,
    )


if __name__ == "__main__":
    main()
