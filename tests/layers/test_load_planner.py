"""Checkpoints of `torch.distributed.checkpoint`: a plain one and a preconditioned one never pass for each other."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.format_utils import (
    BroadcastingTorchSaveReader,
    DynamicMetaLoadPlanner,
    dcp_to_torch_save,
    torch_save_to_dcp,
)
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.layers.load_planner import check_marks
from tests.helpers.dtensor_worker import connect, free_port

MARK = "layers.0.self_attn.preconditioner.requires_preconditioned_attention"
KINDS: dict[str, PreconditionConfig | None] = {
    "plain": None,
    "full": PreconditionConfig(),
    "stop": PreconditionConfig(gradient="stop"),
    "gain": PreconditionConfig(gain=0.5),
}
PARTIAL = dcp.DefaultLoadPlanner(allow_partial_load=True)


def model(kind: str) -> nn.Module:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1)
    if KINDS[kind] is not None:
        precondition_(encoder, KINDS[kind])
    return encoder


def save(kind: str, folder: Path) -> nn.Module:
    saved = model(kind)
    dcp.save({"model": saved}, checkpoint_id=folder, no_dist=True)
    return saved


def load(into: nn.Module, folder: Path, **options: Any) -> None:
    state = {"model": into.state_dict()}
    dcp.load(state, checkpoint_id=folder, no_dist=True, **options)
    into.load_state_dict(state["model"])


def stateful(into: nn.Module, folder: Path) -> None:
    dcp.load({"model": into}, checkpoint_id=folder, no_dist=True)


def by_functions(into: nn.Module, folder: Path) -> None:
    state = {"model": get_model_state_dict(into)}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    set_model_state_dict(into, state["model"])


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    for (key, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two), key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", [load, stateful, by_functions])
def test_a_model_comes_back_without_a_word(kind: str, route: Any, tmp_path: Path) -> None:
    saved, again = save(kind, tmp_path), model(kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*precondition")
        route(again, tmp_path)
    assert_equal(saved, again)


REFUSALS = {
    (
        "full",
        "plain",
    ): "was trained preconditioned, and the model that it is loaded into has no mark there; call precond",
    (
        "plain",
        "full",
    ): "was trained plain, and the model that it is loaded into is preconditioned; call restore_(model)",
    ("stop", "full"): "trained with PreconditionConfig(gradient='stop', placement='pre_skip')",
    ("full", "stop"): "trained with PreconditionConfig(gradient='full', placement='pre_skip')",
    ("gain", "full"): "the checkpoint has a gain of this attention and the model has none",
    ("full", "gain"): "the model has a gain of this attention and the checkpoint has none",
}


@pytest.mark.parametrize(("saved", "into"), REFUSALS)
@pytest.mark.parametrize("route", [load, stateful, by_functions])
def test_another_kind_is_refused(saved: str, into: str, route: Any, tmp_path: Path) -> None:
    save(saved, tmp_path)
    target = model(into)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(dcp.api.CheckpointException) as raised:
        route(target, tmp_path)
    assert REFUSALS[saved, into] in str(raised.value)
    assert "model.layers.0.self_attn.preconditioner." in str(raised.value)
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key]), "nothing was loaded"


@pytest.mark.parametrize(
    ("saved", "into"), [pair for pair in REFUSALS if pair not in {("stop", "full"), ("full", "stop")}]
)
def test_a_partial_load_warns(saved: str, into: str, tmp_path: Path) -> None:
    save(saved, tmp_path)
    with pytest.warns(UserWarning, match=re.escape(REFUSALS[saved, into])):
        load(model(into), tmp_path, planner=PARTIAL)


def test_parts_without_attention_are_loaded_without_a_word(tmp_path: Path) -> None:
    saved, target = save("full", tmp_path), model("plain")
    state = {"model": {"layers": {"0": {"linear1": target.layers[0].linear1.state_dict()}}}}
    state = {
        "model": {f"layers.0.linear1.{key}": value for key, value in state["model"]["layers"]["0"]["linear1"].items()}
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*precondition")
        dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(target.layers[0].linear1.weight, saved.layers[0].linear1.weight)


def test_files_of_hugging_face(tmp_path: Path) -> None:
    saved = model("full")
    dcp.save(saved.state_dict(), storage_writer=HuggingFaceStorageWriter(str(tmp_path)), no_dist=True)
    again, reader = model("full"), HuggingFaceStorageReader(str(tmp_path))
    state = again.state_dict()
    dcp.load(state, storage_reader=reader, no_dist=True)
    again.load_state_dict(state)
    assert_equal(saved, again)
    for other, message in (("plain", "was trained preconditioned"), ("stop", "gradient='full'")):
        with pytest.raises(dcp.api.CheckpointException, match=message):
            dcp.load(model(other).state_dict(), storage_reader=reader, no_dist=True)


def test_a_checkpoint_becomes_a_file_and_a_file_a_checkpoint(tmp_path: Path) -> None:
    saved, again = save("stop", tmp_path / "dcp"), model("stop")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "model.pt")
    again.load_state_dict(torch.load(tmp_path / "model.pt")["model"])
    assert_equal(saved, again)
    torch_save_to_dcp(tmp_path / "model.pt", tmp_path / "again")
    load(again, tmp_path / "again")
    with pytest.raises(dcp.api.CheckpointException, match="gradient='stop'"):
        load(model("full"), tmp_path / "again")


@pytest.fixture
def alone() -> Iterator[None]:
    connect(0, 1, free_port())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_mark_that_a_reader_cuts_to_size_still_says_what_it_was(tmp_path: Path) -> None:
    """This reader takes the sizes from the state dict in memory, and of a larger tensor the first entries."""
    torch.save(model("stop").state_dict(), tmp_path / "stop.pt")
    target = model("full")
    state = target.state_dict()
    reader = BroadcastingTorchSaveReader()
    dcp.load(state, storage_reader=reader, planner=DynamicMetaLoadPlanner(), checkpoint_id=tmp_path / "stop.pt")
    with pytest.warns(UserWarning, match="trained with gradient='stop' and the model has 'full'"):
        target.load_state_dict(state)
    assert torch.equal(target.state_dict()[MARK], model("full").state_dict()[MARK]), "its own again"


def test_asynchronous_saving(tmp_path: Path) -> None:
    connect(0, 1, free_port())
    try:
        saved, again = model("stop"), model("stop")
        dcp.async_save({"model": saved.state_dict()}, checkpoint_id=tmp_path).result(timeout=60)
        load(again, tmp_path)
        assert_equal(saved, again)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(), (3,), (1,), (9, 2, 2), (2, 9, 2), (2, 2)], ids=str)
def test_marks_of_other_forms(shape: tuple[int, ...]) -> None:
    own, saved = ({f"{name}.weight": torch.Size([1]), f"{name}.{MARK}": size} for name, size in _named(shape))
    with pytest.raises(
        ValueError, match=r"^m.layers.0.self_attn.preconditioner.requires.*(version|integers).*load it with"
    ):
        check_marks(own, saved, partial=True)


def _named(shape: tuple[int, ...]) -> list[tuple[str, torch.Size]]:
    return [("m", torch.Size([2, 2, 2])), ("m", torch.Size(shape))]
