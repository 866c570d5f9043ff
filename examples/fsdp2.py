"""Train a converted transformer on several processes with FSDP2, save a sharded checkpoint, and load it again.

    torchrun --nproc-per-node 2 examples/fsdp2.py --output runs/fsdp2

Runs on CPUs (gloo) and on GPUs (NCCL). Needs torch only. Writes a checkpoint that any number of processes can load.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import preconditioned_attention as pa

WIDTH, LENGTH, BATCH_SIZE = 32, 16, 8


def build_model() -> nn.Module:
    """Convert first: a gain has to be among the parameters that `fully_shard` takes."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    pa.precondition_(model, pa.PreconditionConfig(gain=1.0), strict=True)
    return model


def shard(model: nn.TransformerEncoder, device: torch.device) -> nn.Module:
    """Every layer, then what is left, over all processes."""
    model.to(device)
    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, device: torch.device) -> list[float]:
    """Some steps on made-up data: every token is to become the mean of its sequence. The losses of all processes."""
    losses = []
    for step in steps:
        torch.manual_seed(1 + step)
        x = torch.randn(BATCH_SIZE, LENGTH, WIDTH, device=device).chunk(dist.get_world_size())[dist.get_rank()]
        loss = (model(x) - x.mean(dim=1, keepdim=True)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        losses.append(mean.item())
    return losses


def main() -> None:
    """Train, save, load into a new model, and go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/fsdp2"))
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)

    model = shard(build_model(), device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = train(model, optimizer, range(options.steps), device)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=options.output)

    again = shard(build_model(), device)
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-3)
    weights, moments = get_state_dict(again, optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=options.output)
    set_state_dict(again, optimizer, model_state_dict=weights, optim_state_dict=moments)
    losses += train(again, optimizer, range(options.steps, 2 * options.steps), device)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} processes, loss {losses[0]:.4f} -> {losses[-1]:.4f}; {options.output}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
