"""Train converted attention whose heads are shared out among processes, and check it against one process.

    torchrun --nproc-per-node 2 examples/tensor_parallel.py

Runs on CPUs (gloo) and on GPUs (NCCL). Needs torch only. The number of processes has to divide the 4 heads.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import preconditioned_attention as pa
from preconditioned_attention.conversion import shard_gains_
from preconditioned_attention.layers import MultiheadAttention

WIDTH, HEADS, LENGTH = 32, 4, 16
PLAN = {
    "attn.q_proj": ColwiseParallel(),
    "attn.k_proj": ColwiseParallel(),
    "attn.v_proj": ColwiseParallel(),
    "attn.proj": RowwiseParallel(),
    "mlp.0": ColwiseParallel(),
    "mlp.2": RowwiseParallel(),
}


class Block(nn.Module):
    """Attention and an MLP, with residual connections."""

    def __init__(self) -> None:
        """Plain: `precondition_` converts the attention."""
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = MultiheadAttention(WIDTH, HEADS, precondition=None)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, WIDTH)`` in and out."""
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)


def build_model() -> nn.Module:
    """Two converted blocks with a gain, equal on every process."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    pa.precondition_(model, pa.PreconditionConfig(gain=1.0), strict=True)
    return model


def train(model: nn.Module, steps: int, device: torch.device) -> list[float]:
    """Some steps on made-up data, the same on every process."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        torch.manual_seed(1 + step)
        x = torch.randn(4, LENGTH, WIDTH, device=device)
        loss = (model(x) - x.mean(dim=1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train both ways and compare the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)

    model = build_model().to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model:
        parallelize_module(block, mesh, PLAN)
    shard_gains_(model)  # every process has the gains of its heads; before the optimizer
    losses = train(model, options.steps, device)

    alone = train(build_model().to(device), options.steps, device)
    difference = max(abs(one - other) for one, other in zip(losses, alone, strict=True))
    if difference > 1e-4:
        raise SystemExit(f"the losses differ by {difference:.1e} from those of one process")
    if dist.get_rank() == 0:
        heads = model[0].attn.preconditioner.gain.to_local().numel()
        print(
            f"{heads} of {HEADS} heads per process, loss {losses[0]:.4f} -> {losses[-1]:.4f}, off by {difference:.0e}"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
