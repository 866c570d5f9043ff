from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion.attachment import preconditioned_modules
from preconditioned_attention.lab.inspection import load_checkpoint
from tests.helpers.inspection_models import gpt2, vit


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("form", ["plain", "nested", "wrapped", "safetensors"])
def test_loads_what_training_scripts_write(tmp_path: Path, form: str) -> None:
    trained, model = vit(), vit()
    state, path = trained.state_dict(), tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 1.0}}, path)
    else:
        torch.save({f"module.{key}": value for key, value in state.items()} if form == "wrapped" else state, path)
    assert load_checkpoint(model, path) == f"weights from {path.name}"
    assert same(model, trained)


def test_a_head_has_no_place_and_another_classifier_stays_random(tmp_path: Path) -> None:
    trained = transformers.GPT2LMHeadModel(gpt2().config)
    torch.save(trained.state_dict(), tmp_path / "lm.bin")
    model = gpt2()
    assert "1 without a counterpart (lm_head.weight)" in load_checkpoint(model, tmp_path / "lm.bin")
    assert same(model, trained.transformer)
    torch.save(vit(num_classes=7).state_dict(), tmp_path / "w.pth")
    assert "2 of another size, left random (head.weight, head.bias)" in load_checkpoint(vit(), tmp_path / "w.pth")


@pytest.mark.parametrize("gain", [None, 0.5])
def test_a_checkpoint_that_was_trained_preconditioned_is_run_so(tmp_path: Path, gain: float | None) -> None:
    trained, model = vit(), vit()
    config = PreconditionConfig(gradient="stop", gain=gain)
    precondition_(trained, config, filter_fn=lambda module, path: path == "blocks.1.attn")
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    assert "trained with preconditioned attention in 1 layers" in load_checkpoint(model, tmp_path / "w.pth")
    ((path, module),) = preconditioned_modules(model)
    assert (path, module.preconditioner.config.gradient) == ("blocks.1.attn", "stop")
    assert same(model, trained)


def test_unreadable_files(tmp_path: Path) -> None:
    class Own:
        pass

    globals()["Own"] = Own  # pickle finds classes by their module
    Own.__qualname__ = "Own"
    broken, objects, list_, empty = (tmp_path / f"{name}.pth" for name in ("broken", "objects", "list", "empty"))
    broken.write_bytes(b"no weights at all")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights at all")
    torch.save({"model": Own()}, objects)
    torch.save([torch.ones(2)], list_)
    torch.save({"epoch": 3}, empty)
    for path, message in (
        (broken, "broken.pth cannot be read as weights"),
        (tmp_path / "broken.safetensors", "broken.safetensors cannot be read as weights"),
        (objects, "only tensors are read, no other objects"),
        (list_, "holds a list; a mapping of names to tensors is needed"),
        (empty, "holds no tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(vit(), path)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_checkpoint(vit(), tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: vit(depth=1), r"\d+ missing \(blocks.1.norm1.weight, .* and \d+ more\); 0 of another shape"),
        (
            lambda: vit(embed_dim=48),
            r"0 missing; \d+ of another shape \(cls_token \(1, 1, 48\) instead of \(1, 1, 24\)",
        ),
        (lambda: nn.Linear(3, 3), r"missing \(cls_token,"),
    ],
)
def test_another_architecture_is_refused_and_the_model_stays(tmp_path: Path, other, message: str) -> None:
    torch.save(other().state_dict(), tmp_path / "w.pth")
    model = vit()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"does not fit this model: .*{message}"):
        load_checkpoint(model, tmp_path / "w.pth")
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
