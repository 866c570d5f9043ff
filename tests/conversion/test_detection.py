from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from preconditioned_attention.conversion.detection import computes_attention
from tests.conversion.transformers_sweep import model_types, not_importable, transformers_classes


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


SEEN = [ByFunction, BySuper, ByHelperMethod, ByOwnFunction, BySoftmaxModule, ByStaticMethod, LinearAttention]


@pytest.mark.parametrize("cls", [*SEEN, nn.MultiheadAttention])
def test_attention_is_seen(cls: type[nn.Module]) -> None:
    assert computes_attention(cls(4, 2) if cls is nn.MultiheadAttention else cls())


@pytest.mark.parametrize("cls", [ByName, Router, HelperNotCalled, LogSoftmax, nn.Softmax])
def test_other_modules_are_not(cls: type[nn.Module]) -> None:
    assert not computes_attention(cls())


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
