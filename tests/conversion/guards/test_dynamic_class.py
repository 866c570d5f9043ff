from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, parametrize

from preconditioned_attention import precondition_, restore_
from preconditioned_attention.conversion.guards.dynamic_class import base_of_dynamic_class
from tests.helpers.explicit import relative_error

SEQUENCES, IMAGES = torch.randn(3, 5, 16), torch.randn(2, 3, 32, 32)


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True, dropout=0.0), 2).eval()


def vit(name: str) -> nn.Module:
    model = timm.create_model(name, img_size=32, depth=2, embed_dim=24, num_heads=3, num_classes=5).eval()
    for block in model.blocks:  # small layer scales would hide what attention does
        if hasattr(block.ls1, "gamma"):
            nn.init.ones_(block.ls1.gamma)
    return model


def attentions(model: nn.Module) -> list[nn.Module]:
    return [module for path, module in model.named_modules() if path.rpartition(".")[2] in ("self_attn", "attn")]


def shard(attention: nn.Module) -> None:
    fully_shard(attention)


def parametrized(attention: nn.Module) -> None:
    name = "in_proj_weight" if isinstance(attention, nn.MultiheadAttention) else "bias_of_ours"
    if not hasattr(attention, name):
        attention.register_parameter(name, nn.Parameter(torch.ones(2, 2)))
    parametrizations.weight_norm(attention, name)


TOOLS = pytest.mark.parametrize("change", [shard, parametrized])
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "torch": (encoder, SEQUENCES),
    "class swap": (lambda: vit("vit_tiny_patch16_224"), IMAGES),
    "pre-hook": (lambda: vit("vit_relpos_base_patch16_224"), IMAGES),
}


def test_classes_that_were_made_are_told_from_others() -> None:
    attention = nn.MultiheadAttention(8, 2)
    assert base_of_dynamic_class(type(attention)) is None
    fully_shard(attention)
    assert type(attention) is not nn.MultiheadAttention
    assert base_of_dynamic_class(type(attention)) is nn.MultiheadAttention


@TOOLS
@pytest.mark.parametrize("mechanism", MODELS)
def test_changed_after_the_conversion(mechanism: str, change: Callable[[nn.Module], None]) -> None:
    """Converted it stays; its class comes back where it is ours to give back, and is refused where it is not."""
    build, given = MODELS[mechanism]
    model = build()
    report = precondition_(model)
    expected = model(given)
    for attention in attentions(model):
        change(attention)
    changed = [type(attention) for attention in attentions(model)]
    assert relative_error(model(given), expected) <= 1e-5
    report.verify(given)
    if report.entries[0].mechanism == "class swap":
        with pytest.raises(ValueError, match=r"cannot restore .*: its class was Preconditioned\w+ after"):
            restore_(model)
        assert relative_error(model(given), expected) <= 1e-5
    else:
        restore_(model)
        assert relative_error(model(given), expected) > 1e-4
    assert [type(attention) for attention in attentions(model)] == changed


@TOOLS
@pytest.mark.parametrize("mechanism", MODELS)
def test_changed_before_the_conversion(mechanism: str, change: Callable[[nn.Module], None]) -> None:
    """A class swap would take the tool's class away, so hooks convert it, or nothing does."""
    build, given = MODELS[mechanism]
    model = build()
    for attention in attentions(model):
        change(attention)
    before, changed = model(given), [type(attention) for attention in attentions(model)]
    if mechanism == "torch":
        with pytest.raises(ValueError, match=r"(?s)nothing to convert.*Attention by another tool.*before that"):
            precondition_(model)
    else:
        report = precondition_(model, strict=True)
        assert {entry.mechanism for entry in report.entries} == {"pre-hook"}
        report.verify(given)
        restore_(model)
    assert torch.equal(model(given), before)
    assert [type(attention) for attention in attentions(model)] == changed


def test_a_parametrization_that_is_removed_leaves_the_converted_class() -> None:
    model = encoder()
    before = model(SEQUENCES)
    precondition_(model)
    for attention in attentions(model):
        parametrized(attention)
        parametrize.remove_parametrizations(attention, "in_proj_weight")
    restore_(model)
    assert relative_error(model(SEQUENCES), before) <= 1e-5
