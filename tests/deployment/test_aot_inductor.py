"""AOTInductor: a package compiled to C++, of a layer, of models, and of a language model with a static cache."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

from preconditioned_attention import equilibrate, precondition_, preconditioned_attention
from tests.helpers.deployment_models import FAMILIES, LANGUAGE, LLAMA, assert_is_converted
from tests.helpers.explicit import relative_error

CACHE = 12


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return preconditioned_attention(x, x, x, is_causal=True)


def packaged(program: torch.export.ExportedProgram, folder: Path) -> object:
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
    return torch._inductor.aoti_load_package(path)


def test_the_function(tmp_path: Path) -> None:
    x = torch.randn(1, 2, 6, 8)
    compiled = packaged(torch.export.export(Attention(), (x,)), tmp_path)
    expected = equilibrate(nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True))
    assert relative_error(compiled(x), expected) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin", "torchvision swin", "xcit", "encoder", "gpt2"])
def test_models(name: str, tmp_path: Path) -> None:
    family = (FAMILIES | LANGUAGE)[name]
    program = torch.export.export(family.converted(), (family.inputs(),))
    assert_is_converted(packaged(program, tmp_path)(family.inputs()), family)


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=50, **LLAMA)).eval()
    cache = {"batch_size": 1, "max_cache_len": CACHE, "device": "cpu"}
    model.generation_config = GenerationConfig(
        use_cache=True, cache_implementation="static", max_length=CACHE, cache_config=cache
    )
    return model


def decoded(step: object, prompt: list[int]) -> Tensor:
    """The logits of a prompt that is fed token by token."""
    with torch.no_grad():
        at = [step(input_ids=torch.tensor([[t]]), cache_position=torch.tensor([i])) for i, t in enumerate(prompt)]
    return torch.cat(at, dim=1)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_language_model_with_a_static_cache(compiled: bool, tmp_path: Path) -> None:
    """Exported by transformers' own helper, one token a step; as the model without a cache computes it."""
    model, prompt = llama(), [3, 1, 4, 1, 5]
    plain = model(torch.tensor([prompt]), use_cache=False).logits
    precondition_(model, strict=True)
    expected = model(torch.tensor([prompt]), use_cache=False).logits
    assert relative_error(expected, plain) > 1e-2
    exportable = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=CACHE, device="cpu")
    program = exportable.export(input_ids=torch.tensor([[3]]), cache_position=torch.tensor([0]))
    step = packaged(program, tmp_path) if compiled else program.run_decompositions().module()
    assert relative_error(decoded(step, prompt), expected) <= 1e-5
