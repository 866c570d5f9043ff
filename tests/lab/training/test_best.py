from pathlib import Path

import pytest
import torch
from torch import nn

from preconditioned_attention.lab.training.best import BestWeights, better, load_best, save_best


def offer(best: BestWeights | None, model: nn.Module, step: int, metric: float, *, higher: bool) -> BestWeights:
    with torch.no_grad():
        model.weight.fill_(step)
    return better(best, model, step=step, metric=metric, higher=higher)


@pytest.mark.parametrize(("higher", "metrics"), [(True, (0.2, 0.7, 0.7, 0.5)), (False, (0.9, 0.1, 0.1, 0.4))])
def test_the_earliest_of_the_best_is_kept(higher: bool, metrics: tuple[float, ...]) -> None:
    model, best = nn.Linear(2, 2), None
    for step, metric in enumerate(metrics, start=1):
        best = offer(best, model, step, metric, higher=higher)
    assert best is not None
    assert (best.step, best.metric) == (2, metrics[1])
    assert best.weights["weight"].unique().tolist() == [2.0]  # a copy: training went on


def test_written_and_read(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    best = better(None, tied, step=7, metric=1 / 3, higher=True)
    save_best(best, tmp_path / "best.safetensors")
    read = load_best(tmp_path / "best.safetensors")
    assert (read.step, read.metric) == (7, 1 / 3)
    torch.testing.assert_close(read.weights, best.weights, rtol=0, atol=0)
    for number in range(8):  # a mapping's order in the file is not always the same
        save_best(best, tmp_path / f"again-{number}")
        assert (tmp_path / f"again-{number}").read_bytes() == (tmp_path / "best.safetensors").read_bytes()
