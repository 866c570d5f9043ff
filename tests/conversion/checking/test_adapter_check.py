import copy
import doctest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, register_posthook, register_prehook, restore_
from preconditioned_attention.conversion import (
    ClassSwap,
    HeadShape,
    PreHook,
    VerificationError,
    check_adapter,
    register_adapter,
)
from preconditioned_attention.conversion.checking import adapter_check
from preconditioned_attention.conversion.checking.row_matching import Match
from preconditioned_attention.conversion.layout import Layout
from preconditioned_attention.conversion.row_hooks import RowHook
from preconditioned_attention.layers import Preconditioner
from tests.helpers import (
    diffusers_modules,
    timm_cases,
    transformers_cases,
    transformers_hook_cases,
    transformers_modules,
)
from tests.helpers.oracle import jitter_


class HandWritten(torch.autograd.Function):
    """Attention inside an autograd function, as hand-written kernels have it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.softmax(q @ k.mT, dim=-1) @ v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            q, k, v = inputs
            return torch.autograd.grad(torch.softmax(q @ k.mT, dim=-1) @ v, inputs, grad)


@torch.library.custom_op("checking_test::opaque", mutates_args=())
def opaque(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT, dim=-1) @ v


opaque.register_fake(lambda q, k, v: torch.empty_like(q))
opaque.register_autograd(lambda ctx, grad: (None, None, grad))


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (torch.softmax(q @ k.mT, dim=-1)[..., None] * v[..., None, :, :]).sum(dim=-2)


def folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q3, k3, v3 = (x.flatten(0, 1) for x in (q, k, v))
    return torch.bmm(torch.softmax(torch.bmm(q3, k3.mT), dim=-1), v3).unflatten(0, q.shape[:2])


def transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (v.mT @ torch.softmax(q @ k.mT, dim=-1).mT).mT


FORMS = {
    "matmul": lambda q, k, v: torch.softmax(q @ k.mT, dim=-1) @ v,
    "sdpa": F.scaled_dot_product_attention,
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "einsum": lambda q, k, v: torch.einsum("bhij,bhjd->bhid", (torch.einsum("bhid,bhjd->bhij", q, k)).softmax(-1), v),
    "folded": folded,
    "transposed": transposed,
    "summed": summed,
    "autograd function": HandWritten.apply,
    "linear": lambda q, k, v: F.elu(q).add(1) @ (F.elu(k).add(1).mT @ v),
}


class Own(nn.Module):
    """Attention of 4 heads, 4 wide, computed as ``form`` says; subclasses change what comes behind."""

    def __init__(self, form: str = "matmul") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.heads, self.form = 4, form
        self.qkv, self.proj, self.gate = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 16)

    def rows(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        return {**FORMS, "opaque": opaque}[self.form](q, k, v)

    def behind(self, merged: Tensor, x: Tensor) -> Tensor:
        return self.proj(merged)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.rows(x).transpose(1, 2).flatten(2), x)


X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS)
def test_a_right_adapter_is_proven_however_attention_is_computed(form: str) -> None:
    register_prehook(Own, hook_target="proj", num_heads="heads")
    check = check_adapter(Own(form), X)
    assert check.complete, str(check)
    (attention,) = check.attentions
    assert (attention.num_heads, attention.head_dim, attention.rows) == (4, 4, 48)
    assert "proven: every attachment fires" in str(check)
    assert "Own, heads 4, width 4, 48 rows" in str(check)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("heads", "told"), [(8, "2 wide"), (2, "8 wide"), (1, "16 wide")])
def test_a_wrong_head_width_is_refused_where_verify_sees_unit_rows(form: str, heads: int, told: str) -> None:
    register_prehook(Own, hook_target="proj", num_heads=heads)
    model = Own(form)
    precondition_(model).verify(X)
    restore_(model)
    with pytest.raises(VerificationError, match=f"rows of what attention computes: they are {told}") as caught:
        check_adapter(model, X)
    assert "\n" not in str(caught.value)


def test_scaling_the_values_of_a_head_alone_catches_a_head_that_is_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the comparison of rows: it is a proof of its own."""
    register_prehook(Own, hook_target="proj", num_heads=2)
    everything_found = Match(seen=8, looked_at=8, found=8, alike=False, axes={1: -1}, labeled=None)
    monkeypatch.setattr(adapter_check, "match_rows", lambda *args: everything_found)
    with pytest.raises(VerificationError, match="scaling the values of one head changes what leaves"):
        check_adapter(Own(), X)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"interleaved": True}, "they mix heads or tokens"),
        ({"form": "channels"}, "merged entries are not heads"),
    ],
)
def test_a_wrong_layout_is_refused(told: dict[str, Any], message: str) -> None:
    register_prehook(Own, hook_target="proj", num_heads=4, **told)
    with pytest.raises((VerificationError, ValueError), match=message):
        check_adapter(Own(), X)


class Gated(Own):
    def behind(self, merged: Tensor, x: Tensor) -> Tensor:
        return self.proj(merged * torch.sigmoid(self.gate(x)))


class Skipping(Own):
    def behind(self, merged: Tensor, x: Tensor) -> Tensor:
        return self.proj(merged) + 0.1 * merged


class Added(Own):
    """An added term that is a multiple of the rows' own shape, put in place."""

    def behind(self, merged: Tensor, x: Tensor) -> Tensor:
        merged += 0.01 * x
        return self.proj(merged)


class Shuffled(Own):
    """Heads and tokens change places, with as many tokens as heads."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.rows(x).reshape(x.shape))


class Unused(Own):
    def behind(self, merged: Tensor, x: Tensor) -> Tensor:
        return F.linear(merged, self.proj.weight, self.proj.bias)


class Behind(Own):
    def behind(self, merged: Tensor, x: Tensor) -> Tensor:
        return self.gate(self.proj(merged))


@pytest.mark.parametrize(
    ("cls", "told", "message"),
    [
        (Gated, {}, "rows of what attention computes: something .a gate, a norm, an added term. comes between"),
        (Added, {}, "something .a gate, a norm, an added term. comes between"),
        (Skipping, {}, "changes the model's output .*also takes a way that goes past"),
        (Shuffled, {}, "takes for one of 4 heads are rows of several"),
        (Unused, {}, "the attachment did not fire"),
        (Behind, {"hook_target": "gate"}, "or it is not attention's output"),
        (Own, {"hook_target": "qkv"}, "or it is not attention's output"),
    ],
)
def test_what_comes_between_or_goes_past_is_refused(cls: type[Own], told: dict[str, Any], message: str) -> None:
    register_prehook(cls, **{"hook_target": "proj", "num_heads": 4, **told})
    with pytest.raises(VerificationError, match=message):
        check_adapter(cls(), X)


def test_the_projected_output_is_not_heads() -> None:
    class Mine(Own):
        def forward(self, x: Tensor) -> Tensor:
            return Own.forward(self, x)

    register_posthook(Mine, num_heads=4)
    with pytest.raises(VerificationError, match="not rows of what attention computes"):
        check_adapter(Mine(), X)


def swap(forward: Any) -> type[Own]:
    """A class whose attention is swapped for one with ``forward``."""

    class Mine(Own):
        def forward(self, x: Tensor) -> Tensor:
            return Own.forward(self, x)

    @register_adapter(Mine)
    class Swap(ClassSwap):
        honors_backend = True
        original = Mine
        replacement = type("Preconditioned", (Mine,), {"forward": forward})

        def shape(self, module: nn.Module) -> HeadShape:
            return HeadShape(4, 4)

    return Mine


def attending(scale: float = 1.0, values: float = 1.0) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        rows = self.preconditioner.attend(q, k, values * v, scale=scale)
        return self.proj(rows.transpose(1, 2).flatten(2))

    return forward


def test_a_class_swap_is_held_against_the_original() -> None:
    assert check_adapter(swap(attending())(), X).complete
    with pytest.raises(
        VerificationError, match="with C taken out, the converted model does not compute what the plain"
    ):
        check_adapter(swap(attending(scale=0.5))(), X)
    with pytest.raises(VerificationError, match="with C taken out"):
        check_adapter(swap(attending(values=2.0))(), X)  # unit rows hide it


def test_a_detach_that_leaves_something_behind_is_refused() -> None:
    class Mine(Own):
        def forward(self, x: Tensor) -> Tensor:
            return Own.forward(self, x)

    @register_adapter(Mine)
    class Forgetful(PreHook):
        hook_target = "proj"

        def shape(self, module: nn.Module) -> HeadShape:
            return HeadShape(4, 4)

        def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
            module.proj.register_forward_pre_hook(RowHook(preconditioner, Layout(4)))

        def detach(self, module: nn.Module) -> None:
            pass

    with pytest.raises(VerificationError, match="restore_ does not bring classes, hooks and state dict back"):
        check_adapter(Mine(), X)


def test_what_cannot_be_seen_is_said() -> None:
    register_prehook(Own, hook_target="proj", num_heads=4)
    check = check_adapter(Own("opaque"), X)
    assert not check.complete
    assert "not proven: that its rows are attention's" in str(check)
    assert "proven, but for what is listed" in str(check)
    frozen = check_adapter(Own().requires_grad_(False), X)
    assert frozen.attentions[0].unproven == ("that gradients are finite (no output of the model has one)",)
    assert "that tokens are kept apart: they are all alike" in str(check_adapter(Own(), torch.ones(1, 3, 16)))
    model = Own()
    nn.init.zeros_(model.qkv.weight)
    nn.init.zeros_(model.qkv.bias)
    assert "not proven: anything about its rows, which are all zero" in str(check_adapter(model, X))


def test_what_is_a_heads_output_by_definition_is_said() -> None:
    class Mine(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return Own.forward(self, x)

    @register_adapter(Mine)
    class Defined(PreHook):
        hook_target = "proj"
        definition = "gated rows"

        def shape(self, module: nn.Module) -> HeadShape:
            return HeadShape(4, 4)

    (attention,) = check_adapter(Mine(), X).attentions
    assert [what.endswith("does not matter (its rows are gated rows)") for what in attention.unproven] == [True]


def test_a_train_that_returns_nothing() -> None:
    class Mine(Own):
        def train(self, mode: bool = True) -> None:
            super().train(mode)

    register_prehook(Mine, hook_target="proj", num_heads=4)
    assert check_adapter(Mine(), X).complete


def test_attention_that_is_left_out_is_said() -> None:
    class Other(Own):
        def forward(self, x: Tensor) -> Tensor:
            return Own.forward(self, x)

    register_prehook(Own, hook_target="proj", num_heads=4)
    check = check_adapter(nn.Sequential(Own(), Other()), X)
    assert [attention.path for attention in check.attentions] == ["0"]
    assert [entry.path for entry in check.left_out] == ["1"]
    assert not check.complete
    assert "1: tests.conversion.checking.test_adapter_check" in str(check)
    assert "    not converted: " in str(check)


def test_gradients_and_outputs_must_be_finite() -> None:
    class Mine(Own):
        def behind(self, merged: Tensor, x: Tensor) -> Tensor:
            return self.proj(merged) + (0 * self.gate.bias).abs().sqrt()

    def forward(self: Any, x: Tensor) -> Tensor:
        return attending()(self, x) + (0 * self.gate.bias).abs().sqrt()

    with pytest.raises(VerificationError, match=r"the gradient of 'gate\.bias' .* is not finite"):
        check_adapter(swap(forward)(), X)
    register_prehook(Own, hook_target="proj", num_heads=4)
    register_prehook(Mine, hook_target="proj", num_heads=4)
    assert check_adapter(Mine(), X).attentions[0].unproven == (
        "that gradients are finite (some of the plain model's are not)",
    )
    with pytest.raises(VerificationError, match="the plain model's output is not finite for these inputs"):
        check_adapter(Own(), X / 0)


def test_the_model_and_the_random_state_are_left_alone() -> None:
    register_prehook(Own, hook_target="proj", num_heads=4)
    model = Own().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check_adapter(model, X)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == [0] * 4
    assert all(p.grad is None for p in model.parameters())


def test_inputs_and_what_is_refused() -> None:
    register_prehook(Own, hook_target="proj", num_heads=4)
    for inputs in (X, (X,), {"x": X}):
        assert check_adapter(Own(), inputs).complete
    with pytest.raises(TypeError, match="must be a tensor, a tuple"):
        check_adapter(Own(), 3)
    with pytest.raises(ValueError, match="nothing to convert"):
        check_adapter(nn.Linear(16, 16), X)
    model = Own()
    precondition_(model)
    with pytest.raises(ValueError, match="preconditioned already"):
        check_adapter(model, X)
    model = Own()
    model.held = model.qkv(X)
    with pytest.raises(ValueError, match="works on a copy, and this model cannot be copied"):
        check_adapter(model, X)

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own()

        def forward(self, x: Tensor) -> Tensor:
            return self.own(x).argmax(dim=-1)

    with pytest.raises(ValueError, match="returns no floating-point tensor"):
        check_adapter(Counting(), X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("config", [None, PreconditionConfig(gain=2.0, gradient="stop")])
def test_other_dtypes_and_options(dtype: torch.dtype, config: PreconditionConfig | None) -> None:
    register_prehook(Own, hook_target="proj", num_heads="heads")
    assert check_adapter(Own().to(dtype), X.to(dtype), config).complete


def test_many_rows_are_looked_at_by_a_sample() -> None:
    register_prehook(Own, hook_target="proj", num_heads="heads")
    x = torch.randn(4, 200, 16, generator=torch.Generator().manual_seed(0))
    assert check_adapter(Own(), x).attentions[0].rows == 3200
    register_prehook(Own, hook_target="proj", num_heads=8)
    with pytest.raises(VerificationError, match="2 wide"):
        check_adapter(Own(), x)


def tiny(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, **options)


MODELS = {
    "class swap": (lambda: tiny("vit_tiny_patch16_224", img_size=32, depth=2), torch.randn(2, 3, 32, 32)),
    "windows": (
        lambda: tiny("swin_tiny_patch4_window7_224", img_size=28, depths=(1, 1), num_heads=(3, 6), embed_dim=24),
        torch.randn(1, 3, 28, 28),
    ),
    "channels": (lambda: tiny("xcit_nano_12_p16_224", depth=1), torch.randn(1, 3, 64, 64)),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 4, batch_first=True), X),
    "interface": (
        lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=50,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        ),
        {"input_ids": torch.randint(0, 50, (2, 9))},
    ),
    "skip added in place": (
        lambda: transformers.NystromformerModel(
            transformers.NystromformerConfig(
                vocab_size=50,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_landmarks=3,
                segment_means_seq_len=9,
            )
        ).double(),
        {"input_ids": torch.randint(0, 50, (2, 9))},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_adapters_of_this_package_are_proven_by_it(name: str) -> None:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    check = check_adapter(make(), inputs)
    assert check.complete, str(check)


CASES: dict[str, Callable[[], Iterator[tuple[nn.Module, Any]]]] = {
    "timm": lambda: ((jitter_(case.build().double()), case.inputs()) for case in timm_cases.CASES.values()),
    "diffusers": lambda: map(diffusers_modules.build, diffusers_modules.CASES),
    "transformers, modules": lambda: map(transformers_modules.build, transformers_modules.MODULES),
    "transformers, hooked": lambda: ((case.build(), case.inputs()) for case in transformers_hook_cases.HOOKED.values()),
    "transformers, interface": lambda: ((c.build(), c.inputs()) for c in transformers_cases.DISPATCHING.values()),
}


@pytest.mark.slow
@pytest.mark.parametrize("zoo", CASES)
def test_every_adapter_of_this_package_is_proven_by_it(zoo: str) -> None:
    for model, inputs in CASES[zoo]():
        model = jitter_(model) if "modules" in zoo or zoo == "diffusers" else model
        check = check_adapter(model, inputs, include="all")
        unproven = {what for attention in check.attentions for what in attention.unproven}
        assert not check.left_out
        assert all("(its rows are " in what or "the plain model's are not" in what for what in unproven), str(check)


def test_the_example_of_the_docstring_runs() -> None:
    result = doctest.testmod(adapter_check)
    assert result.attempted > 3
    assert result.failed == 0
