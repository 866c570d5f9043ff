import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from preconditioned_attention import PreconditionConfig, is_preconditioned, precondition_
from preconditioned_attention.lab.data.glue import GLUE
from preconditioned_attention.lab.recipes import load_recipe
from preconditioned_attention.lab.tasks.glue import Glue
from preconditioned_attention.lab.tasks.masked_lm import MaskedLM
from tests.helpers.glue_tree import write_release
from tests.helpers.schedules import learning_rates

SIZES = {"vocab_size": 400, "context": 64, "width": 16, "layers": 1, "num_heads": 2, "feed_forward": 24}
PUBLISHED = {
    "cola": 8551,
    "sst2": 67349,
    "mrpc": 3668,
    "stsb": 5749,
    "qqp": 363846,
    "mnli": 392702,
    "qnli": 104743,
    "rte": 2490,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glue")
    write_release(root / "data")
    pretraining = MaskedLM(**SIZES)
    for name, precondition in (("plain", None), ("stop", PreconditionConfig(gradient="stop"))):
        model = pretraining.build_model()
        if precondition is not None:
            precondition_(model, precondition)
        pretraining.export(model, root / name)
    return root


def make(folder: Path, task: str, name: str = "plain", **options: object) -> Glue:
    return Glue(task=task, root=str(folder / "data"), pretrained=str(folder / name), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GLUE)
def test_losses_and_scores_of_every_task(folder: Path, name: str) -> None:
    task = make(folder, name)
    splits, model = task.datasets(), task.build_model().eval()
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [40, 12, 12]  # type: ignore[arg-type]
    batch = splits.collate([splits.train[index] for index in range(8)])
    values = task.evaluate(model, batch)
    outputs, labels = model(batch[0]), batch[1]
    if GLUE[name].classes:
        assert outputs.shape == (8, len(GLUE[name].classes))
        torch.testing.assert_close(values["loss"], F.cross_entropy(outputs, labels.long(), reduction="none"))
        assert values["predictions"] == outputs.argmax(dim=1).tolist()
    else:
        torch.testing.assert_close(values["loss"], (outputs[:, 0] - labels) ** 2)
        assert values["predictions"] == pytest.approx(outputs[:, 0].tolist())
    torch.testing.assert_close(task.loss(model, batch), values["loss"].mean())
    assert values["labels"] == labels.tolist()
    score = task.score(splits.train, {"predictions": [0, 1, 1, 0], "labels": [0, 1, 0, 0]})
    by_hand = {"accuracy": 0.75, "f1": 2 / 3, "matthews": 1 / math.sqrt(3), "pearson": 1 / math.sqrt(3)}
    assert score == pytest.approx({task.metric: by_hand[task.metric]})
    assert model(*task.example_batch(3)).shape[0] == 3


def test_mismatched_mnli_is_the_test_split(folder: Path) -> None:
    splits = make(folder, "mnli").datasets()
    assert splits.validation[0] != splits.test[0]
    splits = make(folder, "rte").datasets()
    assert [splits.validation[index] for index in range(12)] == [splits.test[index] for index in range(12)]


def test_pairs_are_put_together_and_cut_as_published(folder: Path) -> None:
    pair, single = make(folder, "rte"), make(folder, "sst2")
    cls, sep = (pair._tokenizer.token_to_id(token) for token in ("<cls>", "<sep>"))
    tokens, _ = pair.datasets().train[0]
    encode = pair._tokenizer.encode
    assert tokens == [cls, *encode('A "cat" number 0 sat.').ids, sep, *encode("It is 0 o'clock — no?").ids, sep]
    tokens, label = single.datasets().train[1]
    assert tokens == [cls, *encode('A "cat" number 1 sat.').ids, sep, sep]
    assert label == 1.0
    short = make(folder, "rte", context=12).datasets().train[0][0]
    assert len(short) == 12
    middle = short.index(sep)
    assert abs((middle - 1) - (12 - middle - 2)) <= 1  # the longer text was cut
    assert (short[0], short[-1]) == (cls, sep)


def test_padding_changes_nothing(folder: Path) -> None:
    task = make(folder, "rte")
    model, train = task.build_model().eval(), task.datasets().train
    long, short = (
        max((train[i] for i in range(40)), key=lambda e: len(e[0])),
        min((train[i] for i in range(40)), key=lambda e: len(e[0])),
    )
    assert len(long[0]) > len(short[0])
    together = model(task._collate([long, short])[0])
    torch.testing.assert_close(together[1:], model(task._collate([short])[0]))


def test_the_folder_decides_the_form(folder: Path) -> None:
    assert not is_preconditioned(make(folder, "rte").build_model())
    model = make(folder, "rte", "stop").build_model()
    assert is_preconditioned(model)
    assert model.encoder.layers[0].attention.preconditioner.config.gradient == "stop"
    assert model.encoder.config.dropout == 0.1


@pytest.mark.parametrize("name", GLUE)
def test_recipes_are_five_published_epochs(name: str) -> None:
    recipe = load_recipe(f"glue/{name}")
    train = recipe.train
    assert train.steps == 5 * (PUBLISHED[name] // 16)
    assert train.warmup_steps == train.steps // 10
    assert (train.eps, train.betas, train.weight_decay) == (1e-6, (0.9, 0.98), 0.0)
    assert (train.batch_size, train.learning_rate, train.betas, train.weight_decay, train.clip_norm) == (
        *(16, 4e-5, (0.9, 0.98), 0.0, None),
    )
    assert len(recipe.compare.seeds) == 5


def test_the_head_and_the_optimizer_are_the_published_ones(folder: Path) -> None:
    task = make(folder, "mnli")
    model = task.build_model()
    assert [type(layer).__name__ for layer in model.head] == ["Linear", "Tanh", "Dropout", "Linear"]
    assert (model.head[0].out_features, model.head[2].p, model.head[3].out_features) == (1024, 0.1, 3)
    settings = dataclasses.replace(load_recipe("glue/mnli").train, steps=100, warmup_steps=10).optimizer_settings
    optimizer = task.make_optimizer(model, settings)
    (group,) = optimizer.param_groups
    assert (group["eps"], group["betas"], group["weight_decay"]) == (1e-6, (0.9, 0.98), 0.0)
    rates = learning_rates(task.make_scheduler(optimizer, settings), 101)
    expected = [0.1, 1.0, 1.0, 0.5, 0.0]
    assert [rates[step] / settings.learning_rate for step in (0, 9, 10, 55, 100)] == pytest.approx(expected)


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown task of GLUE 'wnli'"):
        Glue(task="wnli")
    with pytest.raises(ValueError, match="root must be the folder that holds GLUE"):
        Glue(task="rte", pretrained=str(folder / "plain")).datasets()
    with pytest.raises(ValueError, match="pretrained must be the folder of an exported masked-lm run"):
        Glue(task="rte", root=str(folder / "data")).build_model()
