from preconditioned_attention.cli.single_run import configure
from preconditioned_attention.lab.recipes import load_recipe


def test_the_recipe_is_kept_where_nothing_replaces_it() -> None:
    recipe = load_recipe("digits")
    assert configure(recipe, arm="plain", seed=None, learning_rate=None, steps=None) == recipe.train


def test_replacements_and_the_options_of_a_variant() -> None:
    recipe = load_recipe("lra/listops-cpu")
    config = configure(recipe, arm="softmax", seed=3, learning_rate=0.5, steps=40)
    assert (config.seed, config.learning_rate, config.steps, config.warmup_steps) == (3, 0.5, 40, 4)
    assert (config.task_options["attention"], config.precondition) == ("softmax", None)
