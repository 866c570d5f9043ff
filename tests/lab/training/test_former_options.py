import pytest

from preconditioned_attention.lab.recipes import load_recipe
from preconditioned_attention.lab.tasks import make_task
from preconditioned_attention.lab.training import TrainConfig
from preconditioned_attention.lab.training.former_options import FORMER_EPS, update_options

NEEDED = "steps: 4\nbatch_size: 2\nlearning_rate: 0.1\n"
RECIPES = ["docs/bert", "bert/crammed", "glue/cola", "glue/stsb", "tinystories/gpt2_small_notebook"]
RECIPES += [f"lra/{name}" for name in ("image", "listops", "pathfinder", "retrieval", "text")]


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_run_without_eps_has_that_of_its_task(name):
    config = load_recipe(name).train
    saved = {option: value for option, value in config.to_dict().items() if option != "eps"}
    assert TrainConfig.from_dict(saved) == config
    assert config.eps == FORMER_EPS[config.task]


def test_eps_that_is_there_stays():
    assert TrainConfig.from_yaml(f"task: glue\neps: 1.0e-8\n{NEEDED}").eps == 1e-8
    assert TrainConfig.from_yaml(f"task: glue\neps: null\n{NEEDED}").eps is None
    assert TrainConfig.from_yaml(f"task: digits\n{NEEDED}").eps is None


def test_former_spellings_are_read():
    options = update_options({"task_options": {"corpus": "tokenised", "model": {"batch_norm": "synchronised"}, "n": 1}})
    assert options["task_options"] == {"corpus": "tokenized", "model": {"batch_norm": "synchronized"}, "n": 1}


def test_the_task_digits_is_a_run_of_image_classification():
    sizes = {"patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}
    config = load_recipe("digits").train
    assert TrainConfig.from_dict({**config.to_dict(), "task": "digits", "task_options": sizes}) == config
    defaults = TrainConfig.from_yaml(f"task: digits\ntask_options: {{split_seed: 3}}\n{NEEDED}")
    assert make_task(defaults.task, defaults.task_options).split_seed == 3
    assert defaults.task_options["model_options"]["embed_dim"] == 64
