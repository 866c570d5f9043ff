import pytest

from preconditioned_attention.cli.choice import choose_arms, choose_recipe, folder_name
from preconditioned_attention.lab.recipes import load_recipe


def test_a_model_picks_one_of_a_family() -> None:
    chosen = choose_recipe("digits", model="xcit", task_options=())
    assert chosen == load_recipe("digits/xcit")
    assert folder_name(chosen) == "digits-xcit"
    assert choose_recipe("digits", model=None, task_options=()) == load_recipe("digits")
    with pytest.raises(ValueError, match=r"unknown recipe 'digits/resnet'; known: .*digits/xcit"):
        choose_recipe("digits", model="resnet", task_options=())


def test_a_preset_and_a_short_name() -> None:
    chosen = choose_recipe("listops", model=None, preset="cpu", task_options=())
    assert chosen == load_recipe("lra/listops-cpu")
    with pytest.raises(ValueError, match="unknown recipe 'listops-gpu'"):
        choose_recipe("listops", model=None, preset="gpu", task_options=())


def test_arms_are_the_recipes_or_the_usual_ones() -> None:
    listops, digits = load_recipe("lra/listops"), load_recipe("digits")
    assert list(choose_arms(listops, None)) == ["plain", "pre-skip", "post-skip", "softmax"]
    assert choose_arms(listops, ("plain", "row-stopgrad", "post-skip"))["post-skip"].config.placement == "post_skip"
    assert list(choose_arms(digits, None)) == ["plain", "row", "row-stopgrad"]
    with pytest.raises(ValueError, match="unknown arm 'softmax'"):
        choose_arms(digits, ("plain", "softmax"))


def test_task_options_replace_the_recipes() -> None:
    options = ("root=/some where", "num_classes=10", "augmentation={hflip: 0.0}", "label_smoothing=1e-1")
    chosen = choose_recipe("imagenet/vit_b", model=None, task_options=options).train.task_options
    expected = {"root": "/some where", "num_classes": 10, "augmentation": {"hflip": 0.0}, "label_smoothing": 0.1}
    assert chosen == {**load_recipe("imagenet/vit_b").train.task_options, **expected}


@pytest.mark.parametrize("text", ["root", "=3"])
def test_a_task_option_of_another_form(text: str) -> None:
    with pytest.raises(ValueError, match=f"must be NAME=VALUE, such as root=/data/imagenet; got '{text}'"):
        choose_recipe("digits", model=None, task_options=(text,))


def test_a_value_that_is_no_yaml() -> None:
    with pytest.raises(ValueError, match=r"task option 'root=\[1' is not valid YAML"):
        choose_recipe("digits", model=None, task_options=("root=[1",))
