import copy
import functools
import random
from collections.abc import Callable

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preconditioned_attention import precondition_
from preconditioned_attention.conversion import VerificationError, plan_conversion, register_composite
from preconditioned_attention.conversion.detection.runtime import call_arguments, detect_in_run
from preconditioned_attention.conversion.registry import _composite_classes

X = torch.randn(2, 6, 4)


class By(nn.Module):
    """A module whose forward is ``function``."""

    def __init__(self, function: Callable[..., Tensor], *children: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(children)
        self.table = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class OwnSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, scores: Tensor) -> Tensor:
        powers = (scores - scores.amax(-1, keepdim=True)).exp()
        return powers / powers.sum(-1, keepdim=True)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        raise AssertionError("the run takes no gradients")


class WholeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        scores = x @ x.mT
        peak = scores.amax(-1, keepdim=True)
        powers = (scores - peak).exp()
        return (powers @ x) / powers.sum(-1, keepdim=True)


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.matmul(torch.softmax(torch.matmul(x, x.transpose(1, 2)), dim=-1), x)


@torch.compile(backend="eager")
def compiled(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.mT, dim=-1) @ x


def weights(x: Tensor) -> Tensor:
    return (x @ x.mT).softmax(-1)


def through_everything(self: By, x: Tensor) -> Tensor:
    """Masks, dropout, casts, views, reshapes, renormalization, mixing of heads, slices written in place."""
    a = weights(x.view(2, 6, 2, 2).transpose(1, 2))
    a = F.dropout(a, 0.1).masked_fill(torch.ones(6, 6).tril() == 0, 0.0)
    a = a.double().float() / (a.sum(-1, keepdim=True) + 1e-6)
    a = torch.einsum("bhij,hg->bgij", a, self.table[:2, :2])
    a = self.parts[0](a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    a = self.parts[1](a)
    kept = torch.zeros(2, 2, 6, 8)
    kept[..., 2:] = a
    kept = kept.reshape(4, 6, 8)[:, :, 2:].unflatten(0, (2, 2))
    return torch.einsum("bhij,bhjd->bhid", kept, x.view(2, 6, 2, 2).transpose(1, 2))


def normalized_over_heads(self: By, x: Tensor) -> Tensor:
    """Re-attention: the heads of the weights are mixed by a table and normalized."""
    a = weights(x.view(2, 6, 2, 2).transpose(1, 2))
    a = torch.einsum("bhij,hg->bgij", a, self.table[:2, :2])
    a = self.parts[0](a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return a @ x.view(2, 6, 2, 2).transpose(1, 2)


def neighbors(self: By, x: Tensor) -> Tensor:
    """Graph attention: a softmax over every node's neighbors, by scatters, and their weighted sum."""
    nodes = self.parts[0](x.flatten(0, 1))
    source, target = torch.tensor([[0, 1, 2, 3, 4], [1, 1, 1, 0, 0]])
    scores = F.leaky_relu((nodes[source] + nodes[target]).sum(-1, keepdim=True))
    powers = (scores - scores.max()).exp()
    total = torch.zeros(len(nodes), 1).index_add(0, target, powers)
    alpha = powers / (total[target] + 1e-16)
    return torch.zeros_like(nodes).index_add(0, target, alpha * nodes[source])


def pooled(self: By, x: Tensor) -> Tensor:
    return (self.parts[0](x).softmax(1) * x).sum(1)


def log_space(self: By, x: Tensor) -> Tensor:
    scores = x @ x.mT
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ x


def performer(self: By, x: Tensor) -> Tensor:
    q, k = (self.parts[0](x)).exp(), (self.parts[0](x) - 1).exp()
    return (q @ (k.mT @ x)) * (1 / (q @ k.sum(1, keepdim=True).mT))


HIDDEN = {
    "sdpa": By(lambda self, x: F.scaled_dot_product_attention(x, x, x)),
    "partial": By(lambda self, x: functools.partial(F.scaled_dot_product_attention, x)(x, x)),
    "operator": By(lambda self, x: torch.ops.aten.scaled_dot_product_attention(x, x, x)),
    "softmax": By(lambda self, x: weights(x) @ x),
    "transposed": By(lambda self, x: x.mT @ weights(x)),
    "softmax child": By(lambda self, x: self.parts[0](x @ x.mT) @ x, nn.Softmax(-1)),
    "own softmax": By(lambda self, x: OwnSoftmax.apply(x @ x.mT) @ x),
    "log softmax": By(lambda self, x: (x @ x.mT).log_softmax(-1).exp() @ x),
    "logsumexp": By(log_space),
    "autograd function": By(lambda self, x: WholeAttention.apply(x)),
    "scripted": By(lambda self, x: scripted(x)),
    "compiled": By(lambda self, x: compiled(x)),
    "everything": By(through_everything, nn.Linear(2, 2), nn.Conv2d(2, 2, 1)),
    "normalized over heads": By(normalized_over_heads, nn.LayerNorm(2)),
    "multiplied and summed": By(lambda self, x: (weights(x)[..., None] * x[:, None]).sum(2)),
    "pooled": By(pooled, nn.Linear(4, 1)),
    "pooled channel by channel": By(pooled, nn.Linear(4, 4)),
    "graph": By(neighbors, nn.Linear(4, 4)),
    "performer": By(performer, nn.Linear(4, 8)),
    "product of weights": By(lambda self, x: weights(x) @ weights(x) @ x),
    "learned scores": By(lambda self, x: (self.table @ self.table.T).softmax(-1) @ x),
    "channels": By(lambda self, x: (x.mT @ x).softmax(-1) @ x.mT),
    "local": By(lambda self, x: self.parts[0](x).view(2, 6, 2, 2).softmax(-1) @ x.view(2, 6, 2, 2), nn.Linear(4, 4)),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_attention_is_seen_when_it_runs(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), HIDDEN[name])
    assert list(detect_in_run(model, (X,), {})) == ["1"]


def experts(self: By, x: Tensor, *, select_first: bool) -> Tensor:
    logits = self.parts[0](x)
    if select_first:
        chosen, index = logits.topk(2, dim=-1)
        chosen = chosen.softmax(-1)
    else:
        chosen, index = logits.softmax(-1).topk(2, dim=-1)
        chosen = chosen / chosen.sum(-1, keepdim=True)
    outputs = torch.stack([expert(x) for expert in self.parts[1:]], dim=-2)
    picked = outputs.gather(-2, index[..., None].expand(*index.shape, 4))
    return (picked * chosen[..., None]).sum(-2)


def scattered_experts(self: By, x: Tensor) -> Tensor:
    tokens = x.flatten(0, 1)
    chosen, index = self.parts[0](tokens).softmax(-1).topk(2, dim=-1)
    out = torch.zeros_like(tokens)
    for number, expert in enumerate(self.parts[1:]):
        token, place = torch.where(index == number)
        out.index_add_(0, token, expert(tokens[token]) * chosen[token, place, None])
    return out


def selective_kernel(self: By, x: Tensor) -> Tensor:
    branches = torch.stack([part(x.mT) for part in self.parts[:2]], dim=1)
    scores = self.parts[2](branches.sum(1).mean(-1, keepdim=True)).view(2, 2, 4, 1)
    return (branches * scores.softmax(1)).sum(1)


def distillation(self: By, x: Tensor) -> Tensor:
    return -(self.parts[0](x).softmax(-1) * (2 * self.parts[0](x)).log_softmax(-1)).sum(-1)


FIVE = [nn.Linear(4, 4) for _ in range(5)]
NONE = {
    "probabilities": By(lambda self, x: self.parts[0](x).softmax(-1), nn.Linear(4, 4)),
    "projected probabilities": By(lambda self, x: self.parts[0](x.softmax(-1)), nn.Linear(4, 3)),
    "codebook": By(lambda self, x: (x @ self.table.T).softmax(-1) @ self.table),
    "expectation": By(lambda self, x: (x.softmax(-1) * torch.arange(4.0)).sum(-1)),
    "router, softmax first": By(functools.partial(experts, select_first=False), *FIVE),
    "router, softmax last": By(functools.partial(experts, select_first=True), *FIVE),
    "router, scattered": By(scattered_experts, *FIVE),
    "mixture by product": By(
        lambda self, x: (
            self.parts[0](x).softmax(-1)[:, :, None] @ torch.stack([part(x) for part in self.parts[1:]], -2)
        ),
        *FIVE,
    ),
    "selective kernel": By(selective_kernel, nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 8, 1)),
    "gate": By(lambda self, x: self.parts[1](x * self.parts[0](x).softmax(-1)), nn.Linear(4, 4), nn.Linear(4, 4)),
    "distillation": By(distillation, nn.Linear(4, 4)),
    "entropy": By(lambda self, x: -(x.softmax(-1) * x.softmax(-1).log()).sum(-1)),
    "exponentials": By(lambda self, x: (x @ x.mT).exp() @ x),
    "no softmax": By(lambda self, x: (x @ x.mT).sigmoid() @ x),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_none_is_not(name: str) -> None:
    assert detect_in_run(NONE[name], (X,), {}) == {}


class Scores(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return weights(x)


class Mix(nn.Module):
    def forward(self, a: Tensor, x: Tensor) -> Tensor:
        return a @ x


def test_the_innermost_module_that_holds_both() -> None:
    split = By(lambda self, x: self.parts[1](self.parts[0](x), x), Scores(), Mix())
    assert detect_in_run(nn.Sequential(nn.Sequential(split)), (X,), {}) == {"0.0": "a softmax whose result reaches bmm"}
    # A child that is not called, but whose forward is.
    assert list(detect_in_run(By(lambda self, x: self.parts[0].forward(x), HIDDEN["softmax"]), (X,), {})) == ["parts.0"]


def test_fast_paths_and_flex_attention() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, batch_first=True).eval()
    assert list(detect_in_run(nn.TransformerEncoder(layer, 2), (X,), {})) == [
        "layers.0.self_attn",
        "layers.1.self_attn",
    ]
    from torch.nn.attention.flex_attention import flex_attention

    model = By(lambda self, x: flex_attention(x[:, None], x[:, None], x[:, None]))
    assert detect_in_run(model, (X,), {}) == {"": "flex_attention"}


def test_nothing_is_left_behind() -> None:
    """Buffers, random states, the parameters' gradients, compiled code and the fast path."""

    def forward(self: By, x: Tensor) -> Tensor:
        random.random(), numpy.random.rand(), self.parts[1](x)
        return self.parts[0](x.mT).mT @ torch.rand(4, 4) * compiled(x)

    model = By(forward, nn.BatchNorm1d(4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))).train()
    model.register_buffer("wide", torch.arange(6).expand(3, 6))
    before = copy.deepcopy(model.state_dict())
    held = dict(model.named_buffers())
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    assert list(detect_in_run(model, (X,), {})) == [""]
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(held[name] is buffer for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states[1:]
    assert torch.backends.mha.get_fastpath_enabled()
    assert model.training


def test_forms_of_input() -> None:
    assert call_arguments(X) == ((X,), {})
    assert call_arguments((X, 2)) == ((X, 2), {})
    assert call_arguments({"x": X}) == ((), {"x": X})
    with pytest.raises(TypeError, match=r"example_inputs must be a tensor, a tuple .* got int"):
        call_arguments(3)


def test_an_error_of_the_model_says_where_it_came_up() -> None:
    with pytest.raises(RuntimeError) as caught:
        detect_in_run(nn.Linear(3, 3), (X,), {})
    assert "to show which of its modules compute attention" in caught.value.__notes__[0]


class Renamed(nn.Module):
    """Nothing in the code of it says attention."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = By(lambda self, x: getattr(F, "scaled_dot_" + "product_attention")(x, x, x))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


def model_with_both() -> nn.Module:
    return nn.Sequential(nn.TransformerEncoderLayer(4, 2, batch_first=True), Renamed()).eval()


@pytest.mark.parametrize("inputs", [X, (X,), {"input": X}], ids=["tensor", "tuple", "mapping"])
def test_strict_refuses_what_only_a_run_shows(inputs: object) -> None:
    model = model_with_both()
    report = plan_conversion(model, example_inputs=inputs)
    assert [(entry.path, entry.status) for entry in report.entries] == [
        ("0.self_attn", "converted"),
        ("1.mix", "unknown"),
    ]
    assert "when the model ran, _scaled_dot_product_flash_attention_for_cpu was seen" in report.entries[1].reason
    with pytest.raises(ValueError, match="strict=True, and some attention would be left out"):
        precondition_(model, strict=True, example_inputs=inputs)
    assert not hasattr(model[0].self_attn, "preconditioner")
    assert [entry.path for entry in precondition_(model, example_inputs=inputs).converted] == ["0.self_attn"]


def test_verify_finds_what_the_report_does_not_list() -> None:
    model = model_with_both()
    report = precondition_(model)
    with pytest.raises(VerificationError, match=r"attention that the report does not list .*\n  1\.mix: no adapter"):
        report.verify(X)
    model = model_with_both()
    assert precondition_(model, example_inputs=X).verify(X)


def test_a_class_that_is_registered_as_none() -> None:
    model = model_with_both()
    register_composite(By)
    try:
        assert precondition_(model, strict=True, example_inputs=X).verify(X)
    finally:
        _composite_classes.remove(By)
