import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preconditioned_attention import precondition_, register_adapter, restore_
from preconditioned_attention.conversion import HeadShape, PostHook, registry
from preconditioned_attention.conversion.guards import first_pass

SEQUENCES = torch.randn(3, 5, 16)


class Fused(nn.Module):
    """A layer that hands its attention's parameters to a functional, as fused layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.fused = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return self.self_attn(x, x, x, need_weights=False)[0]
        own, x = self.self_attn, x.transpose(0, 1)
        weights = (own.in_proj_weight, own.in_proj_bias, None, None, False, 0.0, own.out_proj.weight, own.out_proj.bias)
        return F.multi_head_attention_forward(x, x, x, 16, 2, *weights, need_weights=False)[0].transpose(0, 1)


class ByParts(nn.Module):
    """Calls the attention's layers and never the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = timm.models.davit.ChannelAttentionV2(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.qkv(x).chunk(3, dim=-1)
        return F.linear(F.scaled_dot_product_attention(q, k, v), self.attn.proj.weight, self.attn.proj.bias)


class Returned(nn.Module):
    """Attention that returns its one head, converted by a hook on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v)


@register_adapter(registry.class_name(Returned))
class ReturnedHook(PostHook):
    def shape(self, module: nn.Module) -> HeadShape:
        return HeadShape(1, 16)


class Direct(nn.Module):
    """Calls the attention's forward, past its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Returned()

    def forward(self, x: Tensor) -> Tensor:
        return self.attn.forward(x)


def hooks_left(model: nn.Module) -> int:
    hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
    return sum(isinstance(hook, first_pass.FirstPassCheck) for hook in hooks)


def test_a_fused_layer_is_an_error_at_the_first_pass() -> None:
    model = nn.Sequential(Fused(), Fused())
    model[0].fused = False
    precondition_(model)
    with pytest.raises(RuntimeError, match=r"preconditioners of '1\.self_attn' were not called, and every parameter"):
        model(SEQUENCES)


@pytest.mark.parametrize("parent", [ByParts, Direct])
def test_parts_called_alone_are_an_error_at_every_pass(parent: type[nn.Module]) -> None:
    model = nn.Sequential(parent())
    precondition_(model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"preconditioners of '0\.attn' were not called"):
            model(SEQUENCES)


def test_copies_look_too_and_restored_models_do_not() -> None:
    model = nn.Sequential(Fused())
    precondition_(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(RuntimeError, match="were not called"):
            twin(SEQUENCES)
    restore_(model)
    assert hooks_left(model) == 0
    model(SEQUENCES)


def test_it_looks_once_and_takes_itself_away() -> None:
    model = nn.Sequential(Fused())
    model[0].fused = False
    precondition_(model)
    assert hooks_left(model) == 1
    model(SEQUENCES)
    assert hooks_left(model) == 0


def test_what_a_pass_does_not_need_is_no_error() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Fused(), Fused()
            self.first.fused = self.second.fused = False

        def forward(self, x: Tensor) -> Tensor:
            return self.second(x)

    model = Halves()
    precondition_(model)
    model(SEQUENCES)


def test_some_of_the_parameters_are_not_enough() -> None:
    """Keys and values may be made ahead of a pass that attends to them."""

    class Ahead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias)

    model = Ahead()
    precondition_(model)
    model(SEQUENCES)


def test_parameters_that_others_share_say_nothing() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.twin = Fused(), Fused()
            self.attn.fused = self.twin.fused = False
            for name, parameter in list(self.attn.self_attn.named_parameters()):
                owner = self.twin.self_attn.get_submodule(name.rpartition(".")[0])
                setattr(owner, name.rpartition(".")[2], parameter)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x)

    model = Tied()
    precondition_(model)
    model(SEQUENCES)


def test_a_pass_without_gradients_leaves_the_look_for_later() -> None:
    model = nn.Sequential(Fused())
    precondition_(model)
    with torch.no_grad():
        model(SEQUENCES)
    assert hooks_left(model) == 1
    with pytest.raises(RuntimeError, match="were not called"):
        model(SEQUENCES)


def test_compiled_parts_are_no_false_alarm() -> None:
    torch.compiler.reset()
    model = nn.Sequential(Fused(), Fused())
    for layer in model:
        layer.fused = False
    precondition_(model)
    for layer in model:
        layer.compile(backend="aot_eager")
    model(SEQUENCES).sum().backward()
    assert hooks_left(model) == 0
