import dis
import functools
from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as aliased

from preconditioned_attention.conversion.detection.static import computes_attention
from tests.helpers import elsewhere
from tests.helpers.elsewhere import mix_elsewhere
from tests.helpers.transformers_sweep import model_types, not_importable, transformers_classes


class ByFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class ByHelperMethod(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)

    def mix(self, x: Tensor) -> Tensor:
        return torch.softmax(x, dim=-1) @ x


class BySuper(ByFunction):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(2, 2)


class LinearAttention(ByName):
    pass


class Router(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, x).softmax(dim=-1)


def mix_by(x: Tensor) -> Tensor:
    return x.softmax(dim=-1) @ x


class ByOwnFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mix_by(x)


class BySoftmaxModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Softmax(dim=-1)(x) @ x


class ByStaticMethod(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)

    @staticmethod
    def mix(x: Tensor) -> Tensor:
        return torch.softmax(x, dim=-1) @ x


class LogSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x).log_softmax(dim=-1)


class HelperNotCalled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x

    def mix(self, x: Tensor) -> Tensor:
        return torch.softmax(x, dim=-1) @ x


class ByAlias(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return aliased(x, x, x)


class ByAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = functools.partial(F.scaled_dot_product_attention, dropout_p=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, x, x)


class ByClassAttribute(nn.Module):
    mixer = staticmethod(F.scaled_dot_product_attention)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, x, x)


class ByAnotherFile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mix_elsewhere(x)


class ByTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.how = "eager"

    def forward(self, x: Tensor) -> Tensor:
        return elsewhere.TABLE[self.how](x)


class ByTableInTheConstructor(nn.Module):
    def __init__(self, how: str = "eager") -> None:
        super().__init__()
        self.mix = elsewhere.TABLE[how]

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


class ByImportInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.functional import softmax as weigh

        return weigh(x, -1) @ x


class BySoftmaxChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.Softmax(dim=-1), nn.Dropout(0.1))
        self.lin = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.lin(x).chunk(3, dim=-1)
        return self.attend(a @ b.mT) @ c


class OwnSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        powers = x.exp()
        return powers / powers.sum(-1, keepdim=True)


class ByAutogradFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(OwnSoftmax.apply(x), x)


@torch.compile
def compiled(x: Tensor) -> Tensor:
    return mix_by(x)


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.matmul(torch.softmax(x, dim=-1), x)


class ByCompiledFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return compiled(x)


class ByScriptedFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scripted(x)


@elsewhere.unhelpful_decorator
def decorated(x: Tensor) -> Tensor:
    return mix_by(x)


class ByDecoratedFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return decorated(x)


class ByOperator(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0]


class Processor:
    def __call__(self, x: Tensor) -> Tensor:
        return self.weigh(x) @ x

    def weigh(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


class ByProcessor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.processor = Processor()

    def forward(self, x: Tensor) -> Tensor:
        return self.processor(x)


class OverNeighbors(nn.Module):
    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        alpha = elsewhere.scattered_softmax(x[source].sum(-1, keepdim=True), target, len(x))
        return torch.zeros_like(x).index_add(0, target, alpha * x[source])


class AttentivePooling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.softmax(dim=1) * x).sum(1)


class PooledByWeights(nn.Module):
    """Multiple-instance pooling, jumping knowledge: a softmax over instances, a multiplication and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.att = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.att(x), dim=1)
        return torch.sum(x * weights, dim=1)


class KernelAttention(nn.Module):
    """Linear attention by a feature map, without a softmax and without projections."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("nd,de->ne", F.elu(q) + 1, torch.einsum("nd,ne->de", F.elu(k) + 1, v))


class SingleStream(nn.Module):
    """Attention and the feed-forward network in one class, from one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.fused_in, self.fused_out = nn.Linear(4, 20), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, hidden = self.fused_in(x).split((4, 4, 4, 8), dim=-1)
        return x + self.fused_out(torch.cat([aliased(a, b, c), F.gelu(hidden)], dim=-1))


SEEN = [ByFunction, BySuper, ByHelperMethod, ByOwnFunction, BySoftmaxModule, ByStaticMethod, LinearAttention]
# What names alone did not show.
SEEN += [ByAlias, ByAttribute, ByClassAttribute, ByAnotherFile, ByTable, ByTableInTheConstructor, ByImportInside]
SEEN += [BySoftmaxChild, ByAutogradFunction, ByCompiledFunction, ByScriptedFunction, ByDecoratedFunction, ByOperator]
SEEN += [ByProcessor, OverNeighbors, AttentivePooling, PooledByWeights, KernelAttention, SingleStream]


class MixtureOfExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, 2), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        return (weights[..., None, :] * torch.stack([expert(x) for expert in self.experts], -1)).sum(-1)


class Temperature(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        x = x / x.norm(dim=-1, keepdim=True)
        return (x @ x.mT * scale.exp()).sum(-1)


@pytest.mark.parametrize("cls", [*SEEN, nn.MultiheadAttention])
def test_attention_is_seen(cls: type[nn.Module]) -> None:
    assert computes_attention(cls(4, 2) if cls is nn.MultiheadAttention else cls())


@pytest.mark.parametrize(
    "cls", [ByName, Router, HelperNotCalled, LogSoftmax, nn.Softmax, MixtureOfExperts, Temperature]
)
def test_other_modules_are_not(cls: type[nn.Module]) -> None:
    assert not computes_attention(cls())


def test_a_patched_forward_is_seen() -> None:
    module = nn.Identity()
    module.forward = mix_elsewhere
    assert computes_attention(module)


def test_code_is_read_once_for_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a big model is looked at quickly."""
    model = nn.ModuleList(BySoftmaxChild() for _ in range(1000))
    assert computes_attention(model[0])
    monkeypatch.setattr(dis, "get_instructions", lambda code: pytest.fail("read again"))
    assert all(map(computes_attention, model))


@pytest.mark.parametrize(
    ("name", "cls", "count"),
    [
        ("xcit_nano_12_p16_224", "XCA", 12),
        ("swin_tiny_patch4_window7_224", "WindowAttention", 12),
        ("davit_tiny", "ChannelAttention", 6),
        ("levit_128s", "Attention", 9),
        ("mvitv2_tiny", "MultiScaleAttention", 10),
        ("resnet18", "", 0),
        ("convnext_atto", "", 0),
    ],
)
def test_on_real_models(name: str, cls: str, count: int) -> None:
    """Every attention of these models, and no container of one."""
    with torch.device("meta"):
        model = timm.create_model(name)
    seen = [type(module).__name__ for module in model.modules() if computes_attention(module)]
    assert seen.count(cls) == count
    assert not any("Block" in name or "Stage" in name for name in seen)


@pytest.mark.slow
def test_every_attention_of_transformers_is_known() -> None:
    """All model files, those that generate and those that are parts of others; the counts are those of 5.23.0."""
    swept = transformers_classes()
    counts = Counter(found.status for found in swept)
    print(f"transformers {transformers.__version__}:", dict(counts))
    assert [found.name for found in swept if found.status == "unknown"] == []
    assert all(found.remark for found in swept if found.status not in ("converted", "unknown"))
    for name, text in not_importable().items():
        assert "softmax" not in text.lower(), name
        assert "ttention(" not in text, name
    if transformers.__version__ == "5.23.0":
        expected = {"converted": 575, "defined": 21, "delegates": 214, "no attention": 121, "refused": 15}
        assert counts == expected


@pytest.mark.slow
def test_no_model_of_transformers_holds_attention_that_is_unknown() -> None:
    """Every model type with its default configuration, without weights."""
    reports = dict(model_types())
    entries = [entry for report in reports.values() if report is not None for entry in report.entries]
    built = sum(report is not None for report in reports.values())
    print(f"{built} of {len(reports)} model types built:", dict(Counter(entry.status for entry in entries)))
    assert built >= 560
    assert {entry.class_name for entry in entries if entry.status == "unknown"} == set()
    converted = [entry for entry in entries if entry.status == "converted"]
    assert {entry.class_name for entry in converted if entry.num_heads is None or entry.head_dim is None} == set()
