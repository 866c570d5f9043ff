import pytest
import timm
from torch import Tensor, nn

from preconditioned_attention.conversion import registry
from preconditioned_attention.conversion.registry import (
    Refused,
    find_adapter,
    read_int,
    register_adapter,
    registered_adapters,
)


class KeepsForward(timm.layers.attention.Attention):
    """A subclass with more to it, and the same forward."""


class OwnForward(timm.layers.attention.Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_exact_class_by_swap_subclass_by_hook_own_forward_by_nothing() -> None:
    found = [find_adapter(cls(8, 2)) for cls in (timm.layers.attention.Attention, KeepsForward, OwnForward)]
    assert [adapter and adapter.mechanism for adapter in found] == ["class swap", "pre-hook", None]


def test_unrelated_modules_have_no_adapter() -> None:
    assert find_adapter(nn.Linear(2, 2)) is None


def test_registration_is_checked() -> None:
    with pytest.raises(TypeError, match="names such as"):
        register_adapter(nn.Linear)
    with pytest.raises(TypeError, match="decorates a subclass of Adapter"):
        register_adapter("a.B")(nn.Linear)
    assert "a.B" not in registry._adapters


def test_read_int() -> None:
    module = nn.Linear(3, 4)
    assert read_int(module, "num_heads", "out_features", "in_features") == 4
    assert read_int(module, "weight") is None
    assert read_int(None, "num_heads") is None


def test_what_is_registered_by_name_is_listed() -> None:
    listed = [adapter.mechanism for name, adapter in registered_adapters() if name == "timm.layers.attention.Attention"]
    assert listed == ["class swap", "pre-hook"]


def test_what_is_refused_is_never_converted() -> None:
    adapter = find_adapter(timm.layers.global_context.GlobalContext(8))
    assert isinstance(adapter, Refused)
    with pytest.raises(AssertionError, match="must not be converted"):
        adapter.attach(nn.Linear(2, 2), None)
    with pytest.raises(AssertionError, match="never converted"):
        adapter.detach(nn.Linear(2, 2))
