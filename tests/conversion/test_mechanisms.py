import copy
from dataclasses import replace
from typing import NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, equilibrate, precondition_, restore_
from preconditioned_attention.conversion.layout import Layout
from preconditioned_attention.conversion.row_hooks import AttachmentGuard, OutputHook, RowHook
from preconditioned_attention.layers import Preconditioner


class Subclass(timm.layers.attention.Attention):
    """Goes by pre-hook: the same forward, another class."""


def test_row_hook_splits_by_head_dim_and_applies_the_gain_per_head() -> None:
    c = Preconditioner(PreconditionConfig(gain=1.0), num_heads=3, dtype=torch.float64)
    with torch.no_grad():
        c.gain.copy_(torch.tensor([1.0, 2.0, 3.0]))
    merged = torch.randn(2, 5, 12, dtype=torch.float64)
    out, rest = RowHook(c, Layout(4))(torch.nn.Identity(), (merged, "rest"))
    assert rest == "rest"
    expected = torch.cat([(h + 1) * equilibrate(merged[..., 4 * h : 4 * h + 4]) for h in range(3)], dim=-1)
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=0)


def test_pre_hook_equals_class_swap_and_comes_off() -> None:
    swapped = timm.layers.attention.Attention(12, 3, qkv_bias=True, gated=True).double().eval()
    hooked = Subclass(12, 3, qkv_bias=True, gated=True).double().eval()
    hooked.load_state_dict(swapped.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    before = hooked(x)
    mechanisms = [precondition_(model).entries[0].mechanism for model in (swapped, hooked)]
    assert mechanisms == ["class swap", "pre-hook"]
    torch.testing.assert_close(hooked(x), swapped(x), rtol=1e-12, atol=1e-14)
    twin = copy.deepcopy(hooked)
    restore_(hooked)
    assert torch.equal(hooked(x), before)
    torch.testing.assert_close(twin(x), swapped(x), rtol=1e-12, atol=1e-14)
    restore_(twin)
    assert torch.equal(twin(x), before)


def rows(*, heads: int, tokens: int, d: int) -> tuple[Tensor, Preconditioner, Tensor]:
    """Heads' outputs (B, H, N, d), a preconditioner with another gain per head, and what it makes of them."""
    c = Preconditioner(PreconditionConfig(gain=1.0), num_heads=heads, dtype=torch.float64)
    with torch.no_grad():
        c.gain.copy_(torch.arange(1.0, heads + 1))
    x = torch.randn(2, heads, tokens, d, dtype=torch.float64)
    return x, c, equilibrate(x, gain=c.gain.detach())


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


LAYOUTS = {
    "merged": (Layout(4), merged),
    "merged, more axes": (Layout(4), lambda x: merged(x)[:, None]),
    "channels": (Layout(4, "channels"), lambda x: x.transpose(2, 3).reshape(2, 12, 2, 3)),
    "split": (Layout(4, "split"), lambda x: x),
    "tokens": (Layout(4, "tokens"), lambda x: x.transpose(1, 2)),
    "interleaved": (Layout(4, interleaved=True), lambda x: x.permute(0, 2, 3, 1).flatten(2)),
    "part": (Layout(4, width=12), lambda x: torch.cat([merged(x), torch.ones(2, 6, 5, dtype=x.dtype)], dim=-1)),
    "part of channels": (
        Layout(4, "channels", width=12),
        lambda x: torch.cat([x.transpose(2, 3).reshape(2, 12, 2, 3), torch.ones(2, 5, 2, 3, dtype=x.dtype)], dim=1),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_finds_the_rows(name: str) -> None:
    layout, arrange = LAYOUTS[name]
    x, c, expected = rows(heads=3, tokens=6, d=4)
    torch.testing.assert_close(layout.apply(c, arrange(x)), arrange(expected), rtol=1e-14, atol=0)


def test_output_hook_takes_the_first_of_a_tuple() -> None:
    x, c, expected = rows(heads=3, tokens=6, d=4)
    hook = OutputHook(c, Layout(4, "split"))
    torch.testing.assert_close(hook(torch.nn.Identity(), (), x), expected, rtol=1e-14, atol=0)
    out, weights = hook(torch.nn.Identity(), (), (x, "weights"))
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=0)
    assert weights == "weights"


def test_rows_that_lie_across_memory_are_copied_once() -> None:
    """Cross-covariance attention leaves them so, and its projection would copy them: it finds them in order instead."""
    across = torch.randn(2, 12, 5).transpose(1, 2)
    seen = Layout(4).apply(Preconditioner(PreconditionConfig()), across)
    assert seen.is_contiguous()
    expected = torch.nn.functional.normalize(across.unflatten(-1, (3, 4)), dim=-1).flatten(-2)
    torch.testing.assert_close(seen, expected)


class Named(NamedTuple):
    rows: Tensor
    weights: str


def test_output_hook_keeps_the_kind_of_what_comes_out() -> None:
    x, c, expected = rows(heads=3, tokens=6, d=4)
    hook = OutputHook(c, Layout(4, "split"))
    for output in ((x, "weights"), [x, "weights"], Named(x, "weights")):
        out = hook(torch.nn.Identity(), (), output)
        assert type(out) is type(output)
        torch.testing.assert_close(out[0], expected, rtol=1e-14, atol=0)
        assert out[1] == "weights"
    for wrong in ({"rows": x}, (), None, ("weights", x)):
        with pytest.raises(TypeError, match=r"this Identity is to return the heads' outputs, .*, and it returned"):
            hook(torch.nn.Identity(), (), wrong)


def test_row_hook_needs_a_positional_argument() -> None:
    _, c, _ = rows(heads=3, tokens=6, d=4)
    with pytest.raises(TypeError, match="of this Linear, and it was called without positional arguments"):
        RowHook(c, Layout(4))(torch.nn.Linear(2, 2), ())


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "num_heads or head_dim must be given for form='merged'"),
        ({"form": "channels"}, "num_heads or head_dim must be given for form='channels'"),
        ({"head_dim": 4, "form": "mixed"}, "form must be one of 'merged', 'channels', 'split', 'tokens'; got 'mixed'"),
        ({"form": "split", "interleaved": True}, "interleaved and width concern merged heads"),
        ({"form": "tokens", "width": 3}, "interleaved and width concern merged heads"),
        ({"head_dim": 0}, "head_dim must be positive; got 0"),
        ({"num_heads": -1}, "num_heads must be positive; got -1"),
        ({"head_dim": 4, "width": 0}, "width must be positive; got 0"),
    ],
)
def test_a_layout_is_checked(told: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**told)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name][0].form in ("merged", "channels")])
def test_heads_may_be_told_by_their_number(name: str) -> None:
    layout, arrange = LAYOUTS[name]
    layout = replace(layout, head_dim=None, num_heads=3)
    x, c, expected = rows(heads=3, tokens=6, d=4)
    torch.testing.assert_close(layout.apply(c, arrange(x)), arrange(expected), rtol=1e-14, atol=0)
    torch.testing.assert_close(replace(layout, head_dim=4).apply(c, arrange(x)), arrange(expected), rtol=1e-14, atol=0)


@pytest.mark.parametrize("told", [{"num_heads": 5}, {"head_dim": 5}, {"num_heads": 3, "head_dim": 5}, {"head_dim": 24}])
def test_heads_that_are_not_there_are_an_error_in_one_sentence(told: dict) -> None:
    c = Preconditioner(PreconditionConfig())
    with pytest.raises(ValueError, match="12 merged entries are not heads of these numbers: num_heads=") as caught:
        Layout(**told).apply(c, torch.randn(2, 5, 12))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"form='tokens' finds 6 heads in a tensor of shape \(2, 3, 6, 4\)"):
        Layout(form="tokens", num_heads=3).apply(c, torch.randn(2, 3, 6, 4))


class Parts(torch.nn.Module):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout, self.c = layout, Preconditioner(PreconditionConfig())

    def forward(self, x: Tensor) -> Tensor:
        return self.layout.apply(self.c, x)


@pytest.mark.parametrize("told", [{"num_heads": 3}, {"num_heads": 3, "head_dim": 4, "width": 12}])
def test_a_number_of_heads_is_compiled_whole(told: dict) -> None:
    model, x = Parts(Layout(**told)), torch.randn(2, 6, 12)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for tokens in (6, 5, 4):
        torch.testing.assert_close(compiled(x[:, :tokens]), model(x[:, :tokens]))


class HookedByHand(nn.Module):
    """An attention in all but name: what comes is the heads' outputs, and ``hook_target`` sees them first."""

    def __init__(self, layout: Layout, point: nn.Module, *, behind: bool = False, pair: bool = False) -> None:
        super().__init__()
        self.point, self.pair = point, pair
        self.preconditioner = Preconditioner(PreconditionConfig(gain=1.5), num_heads=3)
        if behind:
            self.register_forward_hook(OutputHook(self.preconditioner, layout))
        else:
            point.register_forward_pre_hook(RowHook(self.preconditioner, layout))
            self.register_forward_pre_hook(AttachmentGuard(("point",)))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, None]:
        out = self.point(x)
        return (out, None) if self.pair else out


SYMBOLIC = {
    "merged": (Layout(4), (2, 5, 12)),
    "merged, told the heads": (Layout(num_heads=3), (2, 5, 12)),
    "merged, told both": (Layout(4, num_heads=3), (2, 5, 12)),
    "interleaved": (Layout(4, interleaved=True), (2, 5, 12)),
    "with others behind": (Layout(4, width=12), (2, 5, 16)),
    "channels": (Layout(4, "channels"), (2, 12, 3, 5)),
    "split": (Layout(4, "split", num_heads=3), (2, 3, 5, 4)),
    "tokens": (Layout(4, "tokens", num_heads=3), (2, 5, 3, 4)),
}


@pytest.mark.parametrize("where", ["leaf", "module", "dropout", "behind", "behind, in a pair"])
@pytest.mark.parametrize("name", SYMBOLIC)
def test_hooks_are_traced_by_torch_fx(name: str, where: str) -> None:
    """On modules that torch.fx takes for leaves, on others, on those that it must take for leaves, and behind."""
    layout, shape = SYMBOLIC[name]
    point = {"module": nn.Sequential(nn.Identity()), "dropout": nn.Dropout(0.5)}.get(where, nn.Identity())
    model = nn.Sequential(HookedByHand(layout, point, behind="behind" in where, pair="pair" in where)).eval()
    graph, x = torch.fx.symbolic_trace(model), torch.randn(shape)
    out, expected = (m(x)[0] if "pair" in where else m(x) for m in (graph, model))
    assert torch.equal(out, expected)
    assert not torch.equal(out, x)
    assert ("0.preconditioner.gain" in graph.state_dict()) == (where != "dropout")
    assert "__module__" not in vars(point)
