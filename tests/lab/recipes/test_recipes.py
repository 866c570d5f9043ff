from pathlib import Path

import pytest

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.lab.recipes import CompareSection, load_recipe, recipe_names
from preconditioned_attention.lab.tasks import make_task
from preconditioned_attention.lab.training import Arm
from preconditioned_attention.selection import KINDS

GOOD = """
train: {task: image-classification, steps: 10, batch_size: 4, learning_rate: 1e-3}
compare: {seeds: [0, 1], learning_rates: [1e-3, 3e-3]}
"""


def test_every_recipe_loads_and_its_task_exists() -> None:
    assert {"digits", "digits/xcit", "imagenet/vit_b"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        make_task(recipe.train.task, recipe.train.task_options)
        assert recipe.train.learning_rate in recipe.compare.learning_rates
        assert len(recipe.compare.seeds) >= 3


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    recipe = load_recipe(path)
    assert (recipe.name, recipe.train.learning_rate) == ("mine", 1e-3)
    assert recipe.compare == CompareSection(seeds=(0, 1), learning_rates=(1e-3, 3e-3))
    assert load_recipe(str(path)) == recipe


def test_arms_say_what_they_include(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    arms = "arms: {plain: null, all: {gain: 1.0, include: all}, former: {gradient: stop, pooling: true}}"
    path.write_text(GOOD.replace("[1e-3, 3e-3]", f"[1e-3, 3e-3], {arms}"))
    assert load_recipe(path).compare.arms == {
        "plain": None,
        "all": Arm(PreconditionConfig(gain=1.0), KINDS),
        "former": Arm(PreconditionConfig(gradient="stop"), ("softmax", "pooling", "channel")),
    }


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'digit'; known: .*digits.*\.yaml file"):
        load_recipe("digit")
    with pytest.raises(OSError, match=r"recipe file .*no\.yaml cannot be read: No such file"):
        load_recipe(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train:", "tran:", r"unknown section of .*mine.yaml: 'tran' \(did you mean 'train'\?\)"),
        ("compare: {seeds: [0, 1], learning_rates: [1e-3, 3e-3]}", "", "must have a section 'compare'"),
        ("seeds: [0, 1], ", "", "section 'compare' of .* lacks seeds"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds must not hold a value twice"),
        ("[1e-3, 3e-3]", "[0.0]", "learning_rates must be more than 0"),
        ("seeds:", "sed: 1, seeds:", "unknown option in section 'compare'"),
        ("steps: 10", "step: 10", "unknown training option 'step'"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("seeds", [(), 3, None])
def test_seeds_must_be_a_list(seeds: object) -> None:
    with pytest.raises(TypeError, match="seeds must be a list with at least one value"):
        CompareSection(seeds=seeds, learning_rates=(0.1,))  # type: ignore[arg-type]


def test_hyphens_stand_for_slashes() -> None:
    assert load_recipe("docs-gpt") == load_recipe("docs/gpt")
    assert load_recipe("docs-gpt").name == "docs/gpt"
