import json
from pathlib import Path

import pytest
import torch

from preconditioned_attention.conversion import build_without_weights, precondition_


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "bert"])
def test_nothing_is_allocated_and_it_can_be_converted(name: str) -> None:
    model = build_without_weights(name)
    assert {p.device for p in model.parameters()} == {torch.device("meta")}
    assert len(precondition_(model).converted) == 12


def test_a_folder_with_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 3, "n_embd": 24, "n_head": 2}))
    assert len(precondition_(build_without_weights(str(tmp_path))).converted) == 3


def test_an_unknown_name_lists_similar_ones() -> None:
    with pytest.raises(ValueError, match=r"similar ones: .*deit_tiny_patch16_224"):
        build_without_weights("deit_tinny_patch16_224")
