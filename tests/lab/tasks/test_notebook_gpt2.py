import dataclasses

import pytest
import torch

from preconditioned_attention.lab.recipes import load_recipe
from preconditioned_attention.lab.tasks import OptimizerSettings
from preconditioned_attention.lab.tasks.notebook_gpt2 import NotebookGPT2
from tests.helpers.schedules import learning_rates, sgd

pytest.importorskip("transformers")
TASK = NotebookGPT2(n_layer=1, n_head=1, n_embd=8, context=8, vocab_size=300)
SETTINGS = OptimizerSettings(
    steps=625,
    batch_size=1024,
    learning_rate=1e-4,
    weight_decay=0.1,
    betas=(0.9, 0.95),
    eps=1e-9,
    warmup_steps=0,
    final_learning_rate=0.0,
)


def test_the_learning_rate_is_that_of_torchs_schedulers_every_micro_batch() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=1000)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=19_000, eta_min=5e-4)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[1000])
    rates = []
    for iteration in range(20_000):
        if iteration % 32 == 31:
            rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    ours = learning_rates(TASK.make_scheduler(sgd(1e-4), SETTINGS), 625)
    assert ours == pytest.approx(rates, rel=1e-3)
    assert rates[-1] > 4.99e-4


def test_a_shorter_run_has_the_same_shape() -> None:
    whole = learning_rates(TASK.make_scheduler(sgd(), SETTINGS), 625)
    short = learning_rates(TASK.make_scheduler(sgd(), dataclasses.replace(SETTINGS, steps=25)), 25)
    assert short == pytest.approx(whole[24::25])
    with pytest.raises(ValueError, match="schedule of its own; leave out warmup_steps=1"):
        TASK.make_scheduler(sgd(), dataclasses.replace(SETTINGS, warmup_steps=1))


def test_everything_decays() -> None:
    model = TASK.build_model()
    (group,) = TASK.make_optimizer(model, SETTINGS).param_groups
    assert (group["eps"], group["weight_decay"], group["betas"]) == (1e-9, 0.1, (0.9, 0.95))
    assert len(group["params"]) == len(list(model.parameters()))


def test_the_recipe_counts_as_the_notebook_does() -> None:
    train = load_recipe("tinystories/gpt2_small_notebook").train
    assert train.eps == 1e-9
    assert train.steps * train.accumulation_steps == 20_000
    assert train.steps * train.batch_size * train.task_options["context"] == 81_920_000
