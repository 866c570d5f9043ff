import copy
import doctest
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from preconditioned_attention import (
    PreconditionConfig,
    equilibrate,
    precondition_,
    register_posthook,
    register_prehook,
    restore_,
)
from preconditioned_attention.conversion import ConversionEntry, plan_conversion, register_adapter, unregister_adapter
from preconditioned_attention.conversion.registry import find_adapter


def rows(x: Tensor, qkv: nn.Linear, heads: int) -> Tensor:
    q, k, v = qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return torch.softmax(q @ k.mT, dim=-1) @ v


class Own(nn.Module):
    """Attention whose heads arrive at ``proj`` merged; a class of its own at every call of `make`."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.config = heads, SimpleNamespace(n_head=heads, ratio=0.5, name="own", flag=True)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.out = nn.ModuleList([nn.Identity(), nn.Sequential(nn.Linear(width, width), nn.Dropout())])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(rows(x, self.qkv, self.heads).transpose(1, 2).flatten(2))


def make() -> type[Own]:
    return type("Mine", (Own,), {"forward": lambda self, x: Own.forward(self, x)})


def converted(cls: type[nn.Module], config: PreconditionConfig | None = None) -> tuple[ConversionEntry, Tensor, Tensor]:
    """The entry of the report, what the module computes, and what it should, by hand."""
    model = cls().double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    plain, before = copy.deepcopy(model), model(x)
    (entry,) = precondition_(model, config).converted
    out = model(x)
    restore_(model)
    assert torch.equal(model(x), before)
    expected = plain.proj(equilibrate(rows(x, plain.qkv, 3)).transpose(1, 2).flatten(2))
    return entry, out, expected


@pytest.mark.parametrize(
    "told",
    [
        {"num_heads": 3},
        {"num_heads": "heads"},
        {"num_heads": "config.n_head"},
        {"num_heads": lambda module: module.heads},
        {"head_dim": 4},
        {"head_dim": lambda module: module.proj.in_features // module.heads},
        {"num_heads": "heads", "head_dim": 4},
        {"num_heads": "heads", "width": "proj.in_features"},
    ],
    ids=lambda told: " ".join(f"{name}={value.__name__ if callable(value) else value}" for name, value in told.items()),
)
def test_one_line_is_enough(told: dict[str, Any]) -> None:
    cls = make()
    register_prehook(cls, hook_target="proj", **told)
    entry, out, expected = converted(cls)
    assert (entry.mechanism, entry.num_heads, entry.head_dim) == ("pre-hook", 3, 4)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)


def test_the_former_name_of_the_hook_target_is_taken_with_a_warning() -> None:
    cls = make()
    with pytest.warns(DeprecationWarning, match="point is now hook_target"):
        register_prehook(cls, point="proj", num_heads=3)
    _, out, expected = converted(cls)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    with pytest.raises(TypeError, match="not both"):
        register_prehook(cls, hook_target="proj", point="proj", num_heads=3)


def test_a_gain_per_head_is_had_where_the_heads_are_told() -> None:
    cls = make()
    register_prehook(cls, hook_target="proj", head_dim=4)
    entry, out, expected = converted(cls, PreconditionConfig(gain=1.0))
    assert entry.num_heads == 3
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)


class Streams(nn.Module):
    """Two streams of one attention, the second with entries of another branch behind attention's."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.width = nn.Linear(12, 36), 12
        self.first, self.second = nn.Linear(12, 12), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        first, second = rows(x, self.qkv, 3).transpose(1, 2).flatten(2).chunk(2, dim=1)
        return torch.cat([self.first(first), self.second(torch.cat([second, x[:, : second.shape[1], :8]], -1))], 1)


def test_several_points_and_what_follows_attentions_entries() -> None:
    register_prehook(Streams, hook_target=["first", "second"], num_heads=3, width="width")
    model, x = Streams().double(), torch.randn(2, 6, 12, dtype=torch.float64)
    made = equilibrate(rows(x, model.qkv, 3)).transpose(1, 2).flatten(2)
    expected = [model.first(made[:, :3]), model.second(torch.cat([made[:, 3:], x[:, :3, :8]], -1))]
    precondition_(model)
    torch.testing.assert_close(model(x), torch.cat(expected, 1), rtol=1e-12, atol=1e-13)
    register_prehook(Streams, hook_target=("first", "second"), num_heads=3)
    with pytest.raises(ValueError, match=r"3 heads of 4 make 12, which is what 'second' takes|does not divide the 20"):
        plan_conversion(Streams())


class Core(nn.Module):
    def __init__(self, form: str, extra: bool) -> None:
        super().__init__()
        self.form, self.extra = form, extra

    def forward(self, heads: Tensor) -> Any:
        out = heads if self.form == "split" else heads.transpose(1, 2)
        out = out.flatten(2) if self.form == "merged" else out
        return (out, "weights") if self.extra else out


@pytest.mark.parametrize("form", ["split", "tokens", "merged"])
@pytest.mark.parametrize("extra", [False, True])
def test_what_a_module_returns(form: str, extra: bool) -> None:
    register_posthook(Core, form=form, num_heads=3 if form == "merged" else None)
    heads, model = torch.randn(2, 3, 5, 4, dtype=torch.float64), Core(form, extra)
    (entry,) = precondition_(model).converted
    assert entry.mechanism == "forward hook"
    out, expected = model(heads), Core(form, False)(equilibrate(heads))
    torch.testing.assert_close(out[0] if extra else out, expected, rtol=1e-13, atol=0)
    restore_(model)
    assert torch.equal(model(heads)[0] if extra else model(heads), Core(form, False)(heads))


@pytest.mark.parametrize(
    ("told", "message"),
    {
        "heads": (
            {"hook_target": "proj", "num_heads": "head"},
            r"num_heads='head': Mine has no attribute 'head'.*'heads'\?",
        ),
        "path": (
            {"hook_target": "proj", "num_heads": "config.n_heads"},
            r"SimpleNamespace has no attribute.*'n_head'\?",
        ),
        "hook target": (
            {"hook_target": "project", "num_heads": "heads"},
            r"no child 'project' \(did you mean 'proj'\?\)",
        ),
        "no module": ({"hook_target": "heads", "num_heads": "heads"}, "no child 'heads'"),
        "float": ({"hook_target": "proj", "num_heads": "config.ratio"}, "is 0.5; a positive integer is wanted"),
        "text": ({"hook_target": "proj", "num_heads": "config.name"}, "is 'own'; a positive integer"),
        "bool": ({"hook_target": "proj", "num_heads": "config.flag"}, "is True; a positive integer"),
        "zero": ({"hook_target": "proj", "num_heads": lambda module: 0}, "is 0; a positive integer"),
        "divides": (
            {"hook_target": "proj", "num_heads": 5},
            "num_heads=5 does not divide the 12, .*'proj' takes",
        ),
        "width": ({"hook_target": "proj", "head_dim": 5}, "head_dim=5 does not divide the 12"),
        "product": (
            {"hook_target": "proj", "num_heads": 3, "head_dim": 2},
            "3 heads of 2 make 6, .*width= says how many",
        ),
        "nested": ({"hook_target": "out.1", "num_heads": 5}, "does not divide the 12, which is what 'out.1' takes"),
        "given": ({"hook_target": "out.0", "num_heads": 5, "width": 12}, "does not divide the 12, which is width"),
    }.values(),
)
def test_what_does_not_fit_the_module_is_one_sentence(told: dict[str, Any], message: str) -> None:
    cls = make()
    register_prehook(cls, **told)
    for call in (precondition_, plan_conversion):
        with pytest.raises(ValueError, match=f"register_prehook does not fit this Mine: .*{message}") as caught:
            call(cls())
        assert "\n" not in str(caught.value)


def test_numbers_that_only_the_tensor_tells() -> None:
    cls = make()
    register_prehook(cls, hook_target="out.0", num_heads=5)
    cls.forward = lambda self, x: self.out[0](x)
    model = cls()
    assert precondition_(model).converted[0].head_dim is None
    with pytest.raises(ValueError, match=r"12 merged entries are not heads of .*: num_heads=5, head_dim=None"):
        model(torch.randn(2, 5, 12))
    register_posthook(Core, form="split", num_heads=5)
    core = Core("tokens", False)
    precondition_(core)
    with pytest.raises(ValueError, match=r"form='split' finds 4 heads in .* \(2, 4, 3, 6\), and num_heads=5"):
        core(torch.randn(2, 3, 4, 6))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    {
        "no heads": (
            lambda: register_prehook(Own, hook_target="proj"),
            ValueError,
            "num_heads or head_dim must be given",
        ),
        "heads": (
            lambda: register_prehook(Own, hook_target="proj", num_heads=0),
            TypeError,
            "num_heads must be .*; got 0",
        ),
        "bool": (lambda: register_prehook(Own, hook_target="proj", num_heads=True), TypeError, "num_heads must be"),
        "text": (lambda: register_prehook(Own, hook_target="proj", num_heads=""), TypeError, "num_heads must be"),
        "float": (lambda: register_prehook(Own, hook_target="proj", head_dim=4.0), TypeError, "head_dim must be"),
        "hook target": (
            lambda: register_prehook(Own, hook_target=(), num_heads=3),
            TypeError,
            r"hook_target must be .*; got \(\)",
        ),
        "hook targets": (
            lambda: register_prehook(Own, hook_target=["proj", 3], num_heads=3),
            TypeError,
            "hook_target must be",
        ),
        "form": (
            lambda: register_prehook(Own, hook_target="proj", num_heads=3, form="mixed"),
            ValueError,
            "form must be one",
        ),
        "kind": (
            lambda: register_prehook(Own, hook_target="proj", num_heads=3, kind="soft"),
            ValueError,
            "kind must be one",
        ),
        "width": (lambda: register_posthook(Own, form="split", width=3), ValueError, "concern merged heads"),
        "post": (lambda: register_posthook(Own), ValueError, "num_heads or head_dim must be given"),
        "class": (lambda: register_prehook(Own(), hook_target="proj", num_heads=3), TypeError, "pass Own itself"),
        "none": (lambda: register_prehook(hook_target="proj", num_heads=3), TypeError, "got none"),
        "name": (
            lambda: register_prehook("a.B", hook_target="proj", num_heads=3),
            ValueError,
            "no package or module 'a'",
        ),
    }.values(),
)
def test_what_can_be_told_at_once_is_refused_at_once(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
    assert find_adapter(Own()) is None


def test_a_later_declaration_takes_the_place_of_an_earlier_one_and_goes_before_ours() -> None:
    cls = timm.layers.attention.Attention
    try:
        register_prehook(cls, hook_target="proj", num_heads=7)
        register_posthook(cls, num_heads="num_heads")
        register_prehook(cls, hook_target="norm", num_heads="num_heads")
        assert precondition_(cls(8, 2)).converted[0].mechanism == "pre-hook"
    finally:
        unregister_adapter(cls)
    assert precondition_(cls(8, 2)).converted[0].mechanism == "class swap"


def test_channel_attention_is_asked_for_by_its_option() -> None:
    cls = make()
    register_prehook(cls, hook_target="proj", num_heads="heads", kind="pooling")
    assert plan_conversion(cls()).entries[0].status == "skipped"
    assert plan_conversion(cls(), include=["pooling"]).entries[0].status == "converted"


def test_a_subclass_of_an_adapter_of_ones_own_still_works_beside_it() -> None:
    cls = make()
    adapter = register_prehook(cls, hook_target="proj", num_heads="heads")
    other = make()
    register_adapter(other)(adapter)
    entry, out, expected = converted(other)
    assert entry.num_heads == 3
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["declared", "registry", "mechanisms", "layout"])
def test_the_examples_of_the_docstrings_run(name: str) -> None:
    module = importlib.import_module(f"preconditioned_attention.conversion.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 3
    assert result.failed == 0
