import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import equilibrate, precondition_, restore_
from preconditioned_attention.conversion import registry
from preconditioned_attention.conversion.adapter import HeadShape
from preconditioned_attention.conversion.adapters.table_hooks import (
    HookRow,
    TableChildHook,
    TablePostHook,
    TablePreHook,
    adapter_of,
    register_table,
)
from preconditioned_attention.conversion.class_names import class_name


class Product(nn.Module):
    def forward(self, weights: Tensor, v: Tensor) -> Tensor:
        return weights @ v


class Attention(nn.Module):
    """Two heads of three, merged by hand before the projection."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.qkv, self.product, self.proj = nn.Linear(6, 18), Product(), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.rows(x, scaled=False).transpose(1, 2).flatten(2))

    def rows(self, x: Tensor, scaled: bool) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        rows = self.product((q @ k.mT).softmax(dim=-1), v)
        return equilibrate(rows) if scaled else rows


BEFORE = HookRow(hook_targets=("proj",), num_heads=2)
CHILD = HookRow(num_heads=2, head_dim=3, form="split", output_of="product", parts=("product",))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry as it was, and every text known."""
    monkeypatch.setattr(registry, "_adapters", {})
    monkeypatch.setattr(registry, "is_reviewed", lambda *_: True)


@pytest.mark.parametrize("row", [BEFORE, CHILD], ids=["hook target", "output of a child"])
def test_a_row_converts_its_class(row: HookRow, known: None) -> None:
    register_table({class_name(Attention): row})
    model, x = Attention().double(), torch.randn(2, 4, 6, dtype=torch.float64)
    plain, expected = model(x), model.proj(model.rows(x, scaled=True).transpose(1, 2).flatten(2))
    (entry,) = precondition_(model).entries
    assert (entry.num_heads, entry.head_dim) == (2, 3)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-13)
    restore_(model)
    assert torch.equal(model(x), plain)


def test_the_kind_of_hook() -> None:
    returned = HookRow(num_heads=2, head_dim=3)
    assert [type(adapter_of(row)) for row in (BEFORE, CHILD, returned)] == [TablePreHook, TableChildHook, TablePostHook]


@pytest.mark.parametrize(
    ("row", "module", "reason"),
    [
        (BEFORE, Attention(5), "num_heads=2 does not divide the 5, which is what 'proj' takes"),
        (HookRow(hook_targets=("out",), num_heads=2), Attention(), "it has no child 'out'"),
        (HookRow(hook_targets=("product",), num_heads=2), Attention(), "cannot tell how wide a head"),
        (HookRow(hook_targets=("proj",), num_heads=2, unsupported_if=lambda module: "gated"), Attention(), "gated"),
        (HookRow(hook_targets=("proj",), num_heads=1, normalizes=True), Attention(), "there is one head"),
    ],
    ids=["numbers", "child", "width", "condition", "norm"],
)
def test_what_a_row_does_not_fit_is_unsupported(row: HookRow, module: nn.Module, reason: str) -> None:
    assert reason in str(row.unsupported_reason(module))


def test_the_shape_is_unknown_where_the_row_does_not_fit() -> None:
    assert TablePreHook(BEFORE).shape(Attention(5)) == HeadShape(None, None)
