import json
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from preconditioned_attention import ConditionMonitor, PreconditionConfig, precondition_
from preconditioned_attention.conversion import conversion_metadata, load_safetensors, save_safetensors
from tests.helpers.former import FORMER

X = torch.randn(2, 5, 12)


def plain() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def converted(marker: bool = True, **options: object) -> nn.Module:
    model = plain()
    precondition_(model, PreconditionConfig(**options), marker=marker)
    return model


@pytest.mark.parametrize("options", [{}, {"gain": 0.5, "eps": 1e-6}], ids=str)
@pytest.mark.parametrize("marker", [True, False])
def test_round_trip(options: dict, marker: bool, tmp_path: Path) -> None:
    model, again = converted(marker, **options), converted(marker, **options)
    save_safetensors(model, tmp_path / "m.safetensors")
    assert not torch.equal(again(X), model(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_safetensors(again, tmp_path / "m.safetensors")
    assert torch.equal(again(X), model(X))
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_metadata_can_be_read_without_loading(tmp_path: Path) -> None:
    save_safetensors(converted(gain=0.5), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["preconditioned_attention"])
    assert set(said) == {"layers.0.self_attn", "layers.1.self_attn"}
    assert PreconditionConfig.from_dict(said["layers.0.self_attn"]) == PreconditionConfig(gain=0.5)
    assert conversion_metadata(plain()) == {}


def test_a_file_whose_options_also_selected_attention(tmp_path: Path) -> None:
    model, said = converted(gradient="stop"), {f"layers.{i}.self_attn": FORMER for i in (0, 1)}
    metadata = {
        "preconditioned_attention": json.dumps(said),
        "preconditioned_attention_marks": json.dumps(list(said)),
    }
    safetensors.torch.save_file(dict(model.state_dict()), tmp_path / "m.safetensors", metadata=metadata)
    again = converted(gradient="stop")
    load_safetensors(again, tmp_path / "m.safetensors")
    assert torch.equal(again(X), model(X))
    with pytest.raises(ValueError, match=r"call precondition_\(model, PreconditionConfig\(gradient='stop', gain=None"):
        load_safetensors(plain(), tmp_path / "m.safetensors")


def test_plain_models_and_files_stay_what_they_were(tmp_path: Path) -> None:
    model, again = plain(), plain()
    save_safetensors(model, tmp_path / "m.safetensors")
    load_safetensors(again, tmp_path / "m.safetensors")
    assert torch.equal(again(X), model(X))


@pytest.mark.parametrize("marker", [True, False])
def test_a_preconditioned_file_does_not_load_into_another_model(marker: bool, tmp_path: Path) -> None:
    save_safetensors(converted(marker), tmp_path / "m.safetensors")
    model = plain()
    before = model(X)
    with pytest.raises(
        ValueError, match=r"'layers\.0\.self_attn' preconditioned \(2 modules in all\), and the model's is"
    ):
        load_safetensors(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"was saved with eps=None at 'layers\.0\.self_attn'"):
        load_safetensors(converted(marker, eps=1e-3), tmp_path / "m.safetensors")
    assert torch.equal(model(X), before)


def test_a_file_with_fewer_modules_converted(tmp_path: Path) -> None:
    model = plain()
    precondition_(model, filter_fn=lambda module, path: "0" in path)
    save_safetensors(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"'layers\.1\.self_attn' plain, and the model's is preconditioned"):
        load_safetensors(converted(), tmp_path / "m.safetensors")


@pytest.mark.parametrize("marker", [True, False])
def test_a_file_that_says_nothing_warns(marker: bool, tmp_path: Path) -> None:
    safetensors.torch.save_file(plain().state_dict(), tmp_path / "m.safetensors")
    with pytest.warns(UserWarning, match="does not say that it was trained with preconditioned attention"):
        load_safetensors(converted(marker), tmp_path / "m.safetensors")


@pytest.mark.parametrize("marker", [True, False])
def test_another_gradient_loads_with_a_warning(marker: bool, tmp_path: Path) -> None:
    model = converted(marker, gradient="stop")
    save_safetensors(model, tmp_path / "m.safetensors")
    again = converted(marker)
    with pytest.warns(UserWarning, match="trained with gradient='stop'"):
        load_safetensors(again, tmp_path / "m.safetensors")
    assert torch.equal(again(X), model(X))


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_safetensors(plain(), tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()

    def full(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_model", full)
    with pytest.raises(OSError, match="disk full"):
        save_safetensors(plain(), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == before


def test_a_model_that_is_only_looked_at_is_a_plain_one() -> None:
    model = plain()
    with ConditionMonitor(model):
        assert conversion_metadata(model) == {}


def test_metadata_that_came_with_other_weights(tmp_path: Path) -> None:
    """A tool that trains plainly and passes the metadata on, and one that leaves a module out of it."""
    path, model = tmp_path / "m.safetensors", converted()
    metadata = conversion_metadata(model)
    safetensors.torch.save_file(plain().state_dict(), path, metadata=metadata)
    for other in (converted(), converted(marker=False)):
        with pytest.raises(
            ValueError, match=r"says that 'layers\.0\.self_attn' is preconditioned, and the weights do not"
        ):
            load_safetensors(other, path)
    modules = json.loads(metadata["preconditioned_attention"])
    del modules["layers.1.self_attn"]
    metadata["preconditioned_attention"] = json.dumps(modules)
    safetensors.torch.save_file(model.state_dict(), path, metadata=metadata)
    with pytest.raises(ValueError, match=r"says that 'layers\.1\.self_attn' is plain, and the weights mark it"):
        load_safetensors(converted(), path)


@pytest.mark.parametrize("marker", [True, False])
def test_files_from_before_the_metadata_spoke_of_marks(marker: bool, tmp_path: Path) -> None:
    path, model, again = tmp_path / "m.safetensors", converted(marker), converted(marker)
    metadata = {"preconditioned_attention": conversion_metadata(model)["preconditioned_attention"]}
    safetensors.torch.save_file(model.state_dict(), path, metadata=metadata)
    load_safetensors(again, path)
    assert torch.equal(again(X), model(X))
