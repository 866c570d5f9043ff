import copy

import pytest
from torch import nn
from transformers import GPT2Config

from preconditioned_attention.conversion.saving.standalone.preconditioned_folder import (
    ENTRY,
    find_modules,
    folder_form,
    plain_config,
    plain_form,
)

CONFIGS = {
    "plain": {"model_type": "llama", "hidden_size": 8},
    "parts": {
        "model_type": "clip",
        "text_config": {"model_type": "clip_text_model", "hidden_size": 8},
        "vision_config": {"model_type": "clip_vision_model"},
        "rope_parameters": {"rope_type": "default"},
    },
    "code of its own": {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back(config: dict) -> None:
    before, entry = copy.deepcopy(config), {"modules": ["a"], "marker": True}
    form = folder_form(config, entry, ["AutoModel"])
    assert form["model_type"] == f"preconditioned_{config['model_type']}"
    assert form["auto_map"] == {name: f"modeling_preconditioned.{name}" for name in ("AutoConfig", "AutoModel")}
    for part in [form, *(part for part in form.values() if isinstance(part, dict) and "model_type" in part)]:
        assert part["attn_implementation"] == part["experts_implementation"] == ENTRY
    assert "rope_parameters" not in form or form["rope_parameters"] == config["rope_parameters"]
    # A configuration class takes the first dictionary inside that names its own model type for the model's part.
    assert "model_type" not in form[ENTRY]
    assert config == before
    plain, found = plain_form(form)
    assert plain == config
    assert found is not None
    assert found["modules"] == ["a"]


def test_what_has_no_entry_stays_what_it_is() -> None:
    for config in CONFIGS.values():
        assert plain_form(config) == (config, None)
    old = {"model_type": "llama", "auto_map": {"AutoModel": "mine.Model"}, ENTRY: {"modules": []}}
    assert plain_form(old) == ({"model_type": "llama", "auto_map": {"AutoModel": "mine.Model"}}, {"modules": []})


def test_a_configuration_is_copied_and_cleaned() -> None:
    config = GPT2Config(attn_implementation=ENTRY, experts_implementation=ENTRY)
    setattr(config, ENTRY, {"modules": ["a"]})
    config.auto_map = {"AutoModel": "modeling_preconditioned.AutoModel"}
    plain, entry = plain_config(config)
    assert entry == {"modules": ["a"]}
    assert (plain._attn_implementation, plain._experts_implementation) == (None, None)
    assert not hasattr(plain, "auto_map")
    assert not hasattr(plain, ENTRY)
    assert hasattr(config, "auto_map")
    other = GPT2Config(attn_implementation="eager")
    other.auto_map = {"AutoModel": "mine.Model"}
    plain, entry = plain_config(other)
    assert (entry, plain._attn_implementation, plain.auto_map) == (None, "eager", other.auto_map)


def tree(*paths: str) -> nn.Module:
    root = nn.Module()
    for path in paths:
        module = root
        for name in path.split("."):
            if not hasattr(module, name):
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
    return root


def listed(*names: str, marker: bool = True, **exceptions: dict) -> dict:
    return {"modules": list(names), "config": {}, "marker": marker, "exceptions": exceptions}


def test_names_may_differ_by_a_prefix() -> None:
    entry = listed("body.h.1.attn")
    assert find_modules(tree("h.0.attn", "h.1.attn"), entry) == {"h.1.attn": "body.h.1.attn"}
    assert find_modules(tree("body.h.0.attn"), listed("h.0.attn")) == {"body.h.0.attn": "h.0.attn"}
    both = tree("visual.h.0.attn", "h.0.attn")
    assert find_modules(both, listed("visual.h.0.attn", "h.0.attn")) == {"h.0.attn": "h.0.attn"} | {
        "visual.h.0.attn": "visual.h.0.attn"
    }
    both.base_model_prefix = "body"
    assert find_modules(both, listed("body.h.0.attn", marker=False)) == {"h.0.attn": "body.h.0.attn"}


def test_a_part_may_have_lost_any_beginning_if_a_mark_proves_it() -> None:
    names = ("text.h.0.attn", "visual.h.0.attn")
    assert set(find_modules(tree("h.0.attn"), listed(*names))) == {"h.0.attn"}
    with pytest.raises(
        ValueError, match=r"'text\.h\.0\.attn', 'visual\.h\.0\.attn', which 'h\.0\.attn' .* may or may not"
    ):
        find_modules(tree("h.0.attn"), listed(*names, marker=False))
    other = listed(*names) | {"exceptions": {names[1]: {"config": {"gain": 1.0}, "marker": True}}}
    with pytest.raises(ValueError, match="load the class that was saved"):
        find_modules(tree("h.0.attn"), other)
