import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from preconditioned_attention import precondition_
from preconditioned_attention.lab.models.crammed_bert import load_crammed_bert
from preconditioned_attention.lab.recipes import load_recipe
from preconditioned_attention.lab.tasks import make_task
from preconditioned_attention.lab.tasks.masked_lm import MaskedLM
from tests.helpers.schedules import learning_rates

SIZES = {"context": 16, "width": 16, "layers": 2, "num_heads": 2, "feed_forward": 24}


@pytest.fixture(scope="module")
def task() -> MaskedLM:
    return MaskedLM(vocab_size=400, **SIZES)


def build(task: MaskedLM) -> torch.nn.Module:
    torch.manual_seed(0)
    return task.build_model().eval()


def test_the_recipe_is_the_published_model() -> None:
    recipe = load_recipe("bert/crammed").train
    with torch.device("meta"):
        model = make_task(recipe.task, recipe.task_options).build_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 119_589_889
    assert (recipe.batch_size, recipe.clip_norm, recipe.learning_rate, recipe.betas) == (8192, 0.5, 1e-3, (0.9, 0.98))


def test_only_hidden_tokens_are_scored(task: MaskedLM) -> None:
    model, validation = build(task), task.datasets().validation
    batch = default_collate([validation[index] for index in range(5)])
    tokens, positions, targets = batch
    assert positions.shape == (5, 4)
    log_probabilities = model(tokens).log_softmax(dim=-1)
    by_hand = torch.stack([-log_probabilities[row, positions[row], targets[row]].mean() for row in range(5)])
    values = task.evaluate(model, batch)
    torch.testing.assert_close(values["loss"], by_hand)
    torch.testing.assert_close(task.loss(model, batch), by_hand.mean())
    guesses = model(tokens).argmax(dim=-1).gather(1, positions)
    torch.testing.assert_close(values["accuracy"], (guesses == targets).float().mean(dim=1))


def test_evaluation_hides_the_same_tokens_every_time(task: MaskedLM) -> None:
    for part in ("validation", "test"):
        first, second = (getattr(task.datasets(), part)[3] for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert task.example_batch(4)[0].shape == (4, 16)
    assert build(task)(*task.example_batch(4)).shape == (4, 16, 400)


def test_the_optimizer_is_the_published_one(task: MaskedLM) -> None:
    model = build(task)
    settings = dataclasses.replace(load_recipe("bert/crammed").train, steps=8).optimizer_settings
    optimizer = task.make_optimizer(model, settings)
    decayed, free = optimizer.param_groups
    assert (decayed["eps"], decayed["betas"], decayed["weight_decay"], free["weight_decay"]) == (
        1e-12,
        (0.9, 0.98),
        0.01,
        0,
    )
    assert {p.ndim for p in decayed["params"]} == {2}
    assert sum(p.numel() for group in (decayed, free) for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    rates = learning_rates(task.make_scheduler(optimizer, settings), 8)
    assert [rates[step] for step in (0, 6, 7)] == pytest.approx([0.25e-3, 1e-3, 0.5e-3])


def test_token_frequencies_stand_beside_it(task: MaskedLM) -> None:
    score = task.baselines()["token frequencies"]
    uniform = float(F.cross_entropy(torch.zeros(1, 400), torch.zeros(1, dtype=torch.long)))
    assert 3.0 < score < uniform
    assert {"Python", "sha256", "training tokens", "tokenizer"} <= set(task.describe_data())


def test_an_exported_model_comes_back(task: MaskedLM, tmp_path: Path) -> None:
    model = build(task)
    precondition_(model)
    task.export(model, tmp_path)
    loaded = load_crammed_bert(tmp_path).eval()
    batch = task.example_batch(3)
    assert torch.equal(loaded(*batch), model(*batch))
    assert (tmp_path / "tokenizer.json").exists()


def test_a_tokenized_data_set(task: MaskedLM, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    numbers = torch.randint(400, (1200, 16), generator=torch.Generator().manual_seed(0)).tolist()
    datasets.Dataset.from_dict({"input_ids": numbers}).to_parquet(str(tmp_path / "train.parquet"))
    task._tokenizer.save(str(tmp_path / "tokenizer.json"))
    options = {"corpus": "tokenized", "root": str(tmp_path), "tokenizer": str(tmp_path / "tokenizer.json")}
    other = MaskedLM(vocab_size=400, **SIZES, **options)
    splits = other.datasets()
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [1196, 2, 2]
    assert (splits.shuffle, task.datasets().shuffle) == (False, True)  # its order is a curriculum
    _, positions, targets = splits.test[0]
    assert torch.equal(targets, torch.tensor(numbers[1])[positions])
    assert other.baselines() == {}
    assert other.describe_data()["training rows"] == 1196


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": "pile"}, "corpus must be one of"),
        ({"vocab_size": 200}, "vocab_size must be at least 261"),
        ({"width": 10, "num_heads": 4}, "width must be a multiple of num_heads"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedLM(**options)


def test_tokenized_data_needs_its_files() -> None:
    with pytest.raises(ValueError, match=r"tokenizer must be the tokenizer\.json"):
        MaskedLM(corpus="tokenized").datasets()
    with pytest.raises(ValueError, match="root must be the folder"):
        MaskedLM(corpus="tokenized")._windows  # noqa: B018
