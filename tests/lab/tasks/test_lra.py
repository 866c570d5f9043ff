import dataclasses
from pathlib import Path

import pytest
import torch

from preconditioned_attention.lab.recipes import load_recipe
from preconditioned_attention.lab.tasks import ListOps
from preconditioned_attention.lab.tasks.lra import lookup_accuracy
from preconditioned_attention.lab.training import Arm, train

SMALL = {
    "count": 60,
    "held_out": 20,
    "min_length": 5,
    "max_length": 20,
    "positions": 24,
    "dim": 8,
    "mlp_dim": 8,
    "num_landmarks": 4,
    "conv_kernel_size": 3,
}


def test_values_per_example_average_to_the_loss() -> None:
    task = ListOps(**SMALL)
    splits = task.datasets()
    model = task.build_model().eval()
    batch = splits.collate([splits.train[index] for index in range(20)])
    values = task.evaluate(model, batch)
    assert {name: value.shape for name, value in values.items()} == {"loss": (20,), "accuracy": (20,)}
    torch.testing.assert_close(values["loss"].mean(), task.loss(model, batch))
    right = model(batch[0]).argmax(dim=-1) == batch[1]
    assert values["accuracy"].tolist() == right.float().tolist()


def test_example_batch_is_the_beginning_of_validation() -> None:
    task = ListOps(**SMALL)
    (ids,) = task.example_batch(3)
    first = task.datasets().validation[0][0]
    assert ids.shape[0] == 3
    assert ids[0, : len(first)].tolist() == first.tolist()
    assert len(task.example_batch(1000)[0]) == 20


def test_the_optimizer_is_the_benchmarks() -> None:
    task, settings = ListOps(**SMALL), load_recipe("lra/listops").train.optimizer_settings
    optimizer = task.make_optimizer(task.build_model(), settings)
    scheduler = task.make_scheduler(optimizer, settings)
    (group,) = optimizer.param_groups
    assert (type(optimizer), type(scheduler)) == (torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR)
    assert (group["eps"], group["betas"], group["weight_decay"]) == (1e-6, (0.95, 0.999), 0.0)


@pytest.mark.parametrize("name", ["image", "listops", "listops-cpu", "pathfinder", "retrieval", "text"])
def test_recipes_have_the_benchmarks_eps(name: str) -> None:
    assert load_recipe(f"lra/{name}").train.eps == 1e-6


def test_lookup_accuracy_by_hand() -> None:
    train_keys, train_labels = [0, 0, 0, 1, 1], [5, 5, 6, 7, 7]
    assert lookup_accuracy(train_keys, train_labels, [0, 0, 1, 1, 2], [5, 6, 7, 5, 5]) == 2 / 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attention": "other"}, ValueError, "attention must be one of"),
        ({"positions": 0}, ValueError, "positions must be at least 1"),
        ({"depth": 0}, ValueError, "depth must be at least 1"),
        ({"data": 3}, TypeError, "data must be the path of a folder, or None; got 3"),
        ({"num_landmarks": 0}, ValueError, "num_landmarks must be at least 1"),
    ],
)
def test_options_that_cannot_be(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ListOps(**{**SMALL, **options})


def test_three_steps_of_the_full_size_recipe(tmp_path: Path) -> None:
    """Model, lengths and optimizer are the recipe's; batch and data are smaller, and the CPU has no float16."""
    recipe = load_recipe("lra/listops").train
    options = {**recipe.task_options, "count": 40, "held_out": 3}
    config = dataclasses.replace(
        recipe.with_steps(3),
        task_options=options,
        batch_size=2,
        precision="float32",
        precondition=Arm(),
        evaluate_every=None,
    )
    result = train(config, tmp_path / "run", progress=False)
    assert len(result.losses) == 3
    assert sum(parameter.numel() for parameter in result.model.parameters()) == 209_942
    assert 0 <= result.test["accuracy"] <= 1
