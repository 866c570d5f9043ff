import subprocess
import sys

import pytest
import timm
import torch
from torch import Tensor, nn

from preconditioned_attention.conversion import (
    Adapter,
    HeadShape,
    PreHook,
    plan_conversion,
    precondition_,
    registry,
    restore_,
)
from preconditioned_attention.conversion.adapter import UnsupportedAdapter, read_int
from preconditioned_attention.conversion.registry import (
    find_adapter,
    register_adapter,
    register_composite,
    registered_adapters,
    unregister_adapter,
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
    for wrong, message in {
        3: "names such as .*; got 3",
        nn.Linear(2, 2): "classes are registered, not modules; pass Linear itself",
        Adapter: "write @register_adapter",
        int: "names such as",
    }.items():
        with pytest.raises(TypeError, match=message):
            register_adapter(wrong)
    with pytest.raises(TypeError, match="got none"):
        register_adapter()
    with pytest.raises(TypeError, match="decorates a subclass of Adapter"):
        register_adapter(nn.Linear)(nn.Linear)
    assert find_adapter(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("former", ["honours_backend", "point", "points", "refusal", "serves"])
def test_a_member_under_its_former_name_is_an_error(former: str) -> None:
    with pytest.raises(TypeError, match=rf"Old\.{former}: this member of an adapter is now called"):
        register_adapter(nn.Linear)(type("Old", (PreHook,), {former: None}))


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
    assert isinstance(adapter, UnsupportedAdapter)
    with pytest.raises(AssertionError, match="must not be converted"):
        adapter.attach(nn.Linear(2, 2), None)
    with pytest.raises(AssertionError, match="never converted"):
        adapter.detach(nn.Linear(2, 2))


def attention_class() -> type[nn.Module]:
    """A class of its own at every call, all of one name, as a notebook's cell makes them."""

    class OwnAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    return OwnAttention


def adapter_class(*classes: type[nn.Module] | str, point: str = "proj") -> type[PreHook]:
    @register_adapter(*classes)
    class OwnAdapter(PreHook):
        def shape(self, module: nn.Module) -> HeadShape:
            return HeadShape(2, 4)

    OwnAdapter.hook_target = point
    return OwnAdapter


def test_a_class_is_known_by_identity_and_its_name_means_every_class_that_has_it() -> None:
    first, second = attention_class(), attention_class()
    assert registry.class_name(first) == registry.class_name(second)
    by_class = adapter_class(first)
    assert type(find_adapter(first())) is by_class
    assert find_adapter(second()) is None
    by_name = adapter_class(registry.class_name(second))
    try:
        assert type(find_adapter(first())) is by_class
        assert type(find_adapter(second())) is by_name
    finally:
        unregister_adapter(registry.class_name(second))
    assert find_adapter(second()) is None


def test_a_class_of_main_a_nested_class_and_a_mixture() -> None:
    class Outer:
        Inner = attention_class()

    adapter = adapter_class(Outer.Inner, "timm.layers.attention2d.Attention2d")
    try:
        assert type(find_adapter(Outer.Inner())) is adapter
        assert type(find_adapter(timm.layers.attention2d.Attention2d(8, 8))) is adapter
    finally:
        unregister_adapter("timm.layers.attention2d.Attention2d")
    script = """if True:
        from torch import nn
        from preconditioned_attention.conversion import Adapter, register_adapter
        from preconditioned_attention.conversion.registry import find_adapter
        class Mine(nn.Module):
            def forward(self, x):
                return x
        class Mine2(Mine): ...
        for target in (Mine, "__main__.Mine2"):
            @register_adapter(target)
            class A(Adapter):
                shape = attach = detach = None
        assert type(find_adapter(Mine())).__name__ == type(find_adapter(Mine2())).__name__ == "A"
        try:
            register_adapter("__main__.Mnie2")
        except ValueError as error:
            assert "as far as it has run" in str(error) and "did you mean '__main__.Mine2'" in str(error), error
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_last_registered_is_asked_first_and_a_cell_may_run_again() -> None:
    cls = timm.layers.attention.Attention
    adapter_class(cls)
    again = adapter_class(cls)
    try:
        assert type(find_adapter(cls(8, 2))) is again
        assert len(registry._adapters_of_classes[cls]) == 1
    finally:
        unregister_adapter(cls)
    assert find_adapter(cls(8, 2)).mechanism == "class swap"
    with pytest.raises(ValueError, match="no adapter was registered for"):
        unregister_adapter(cls)
    with pytest.raises(ValueError, match="no adapter was registered for"):
        unregister_adapter("timm.layers.attention.Attention")


def test_what_converted_a_module_restores_it() -> None:
    cls = attention_class()
    adapter_class(cls)
    model, x = cls(), torch.randn(2, 3, 8)
    before = model(x)
    precondition_(model)
    unregister_adapter(cls)
    restore_(model)
    assert torch.equal(model(x), before)


def test_a_reexported_name_means_its_class() -> None:
    adapter = adapter_class("timm.layers.Attention2d")
    try:
        assert type(find_adapter(timm.layers.attention2d.Attention2d(8, 8))) is adapter
    finally:
        unregister_adapter("timm.layers.Attention2d")


def test_a_module_of_a_former_class_of_the_name_is_told_so() -> None:
    def run_twice() -> type[nn.Module]:
        class RunTwice(attention_class()): ...

        return RunTwice

    old, new = run_twice(), run_twice()
    adapter_class(new)
    (entry,) = plan_conversion(old()).entries
    assert entry.status == "unknown"
    assert "an adapter is registered for another class of this name; build the model anew" in entry.reason
    unregister_adapter(new)
    assert "no adapter is registered for this class" in plan_conversion(old()).entries[0].reason


def test_composites_are_classes_or_names_that_are_there() -> None:
    first, second = attention_class(), attention_class()
    register_composite(first)
    assert [registry.is_composite(cls()) for cls in (first, second)] == [True, False]
    with pytest.raises(ValueError, match=r"no attention class is named 'timm\.layers\.attention\.Atention'"):
        register_composite("timm.layers.attention.Atention")
    with pytest.raises(TypeError, match="names such as"):
        register_composite(3)
