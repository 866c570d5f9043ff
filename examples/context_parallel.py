"""Train on sequences that processes share: each holds a part of every sequence, and attends to all of it.

    torchrun --nproc-per-node 2 examples/context_parallel.py

A small causal language model is trained on the source of this file, once by every process on whole sequences and once
inside ``context_parallel``; the losses are printed side by side and have to agree. On GPUs the same code runs PyTorch's
ring (backend nccl).
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.experimental import context_parallel

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.layers import MultiheadAttention

WIDTH, HEADS, BATCH = 32, 4, 4


class Block(nn.Module):
    """Preconditioned causal attention and a feed-forward layer."""

    def __init__(self) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.attention = MultiheadAttention(WIDTH, HEADS, precondition=PreconditionConfig(gain=1.0))
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, WIDTH)`` to the same shape."""
        x = x + self.attention(self.norms[0](x), is_causal=True)
        return x + self.feed_forward(self.norms[1](x))


class LanguageModel(nn.Module):
    """Bytes to scores of the next byte. ``places`` are passed: a process does not hold the tokens 0, 1, 2, ..."""

    def __init__(self, length: int) -> None:
        """For sequences of at most ``length`` bytes."""
        super().__init__()
        self.embed, self.position = nn.Embedding(256, WIDTH), nn.Embedding(length, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Scores ``(B, N, 256)``."""
        return self.head(self.blocks(self.embed(tokens) + self.position(places)))


def train(steps: int, length: int, mesh: DeviceMesh | None) -> list[float]:
    """The loss of every step; ``mesh``: the processes that share the sequences."""
    torch.manual_seed(0)
    model = LanguageModel(length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    text = torch.tensor(list(Path(__file__).read_bytes()))
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(text) - length, (BATCH, 1))
        tokens, targets = (text[starts + torch.arange(length) + shift] for shift in (0, 1))
        places = torch.arange(length).repeat(BATCH, 1)
        optimizer.zero_grad()
        if mesh is None:
            loss = F.cross_entropy(model(tokens, places).flatten(0, 1), targets.flatten())
            loss.backward()
        else:
            with context_parallel(mesh, buffers=[tokens, targets, places], buffer_seq_dims=[1, 1, 1]):
                summed = F.cross_entropy(model(tokens, places).flatten(0, 1), targets.flatten(), reduction="sum")
                loss = summed / (BATCH * length)
                loss.backward()
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            for x in (loss.detach(), *gradients):
                dist.all_reduce(x)  # every process has the part of its tokens
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train in both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--length", type=int, default=64, help="bytes; a multiple of twice the processes")
    arguments = parser.parse_args()
    if "WORLD_SIZE" not in os.environ:
        raise SystemExit("run it by a launcher: torchrun --nproc-per-node 2 examples/context_parallel.py")
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    alone, shared = (train(arguments.steps, arguments.length, x) for x in (None, mesh))
    largest = max(abs(a - b) for a, b in zip(alone, shared, strict=True))
    if dist.get_rank() == 0:
        for step, (a, b) in enumerate(zip(alone, shared, strict=True), 1):
            print(f"step {step:3d}  one process {a:.5f}  {mesh.size()} processes {b:.5f}")
        print(f"largest difference of a loss: {largest:.1e}")
    dist.destroy_process_group()
    if largest > 1e-4:
        raise SystemExit(f"the losses differ by {largest:.1e}")


if __name__ == "__main__":
    main()
