"""Quantized weights: torchao in int8 and PyTorch's own dynamic quantization, before and after a conversion."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from preconditioned_attention import precondition_
from preconditioned_attention.conversion.attachment import preconditioned_modules
from preconditioned_attention.layers.observation import OutputObserver, attach_observer
from tests.helpers.deployment_models import FAMILIES, INCLUDE, LANGUAGE, assert_is_converted

ALL = FAMILIES | LANGUAGE
TRIED = ["vit", "swin", "xcit", "torchvision vit", "encoder", "own layers", "gpt2"]
pytestmark = pytest.mark.filterwarnings("ignore")


def weight_only(model: nn.Module) -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization", reason="the dev extra brings it")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


def dynamic(model: nn.Module) -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization", reason="the dev extra brings it")
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    return model


def of_pytorch(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("quantize", [weight_only, dynamic, of_pytorch])
@pytest.mark.parametrize("name", TRIED)
def test_converted_and_then_quantized(name: str, quantize: Callable[[nn.Module], nn.Module]) -> None:
    family = ALL[name]
    model = quantize(family.converted())
    seen = []
    for _, module in preconditioned_modules(model):
        attach_observer(module.preconditioner, OutputObserver(lambda out: seen.append(out.norm(dim=-1))))
    with torch.no_grad():
        assert_is_converted(model(family.inputs()), family, within=0.07)
    assert seen
    assert all(torch.allclose(norms, torch.ones_like(norms)) for norms in seen)


@pytest.mark.parametrize("quantize", [weight_only, dynamic, of_pytorch])
@pytest.mark.parametrize("name", ["vit", "swin", "encoder"])
def test_quantized_and_then_converted(name: str, quantize: Callable[[nn.Module], nn.Module]) -> None:
    """As good: what is quantized is the same weights."""
    family = ALL[name]
    model = quantize(copy.deepcopy(family.plain()))
    precondition_(model, include=INCLUDE, strict=True)
    with torch.no_grad():
        assert_is_converted(model(family.inputs()), family, within=0.07)
