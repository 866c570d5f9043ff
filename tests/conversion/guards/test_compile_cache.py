import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from preconditioned_attention import precondition_, register_adapter, restore_
from preconditioned_attention.conversion import HeadShape, Layout, PostHook, registry
from preconditioned_attention.layers import MultiheadAttention
from tests.helpers.explicit import relative_error

SEQUENCES, IMAGES, TOKENS = torch.randn(3, 5, 16), torch.randn(2, 3, 32, 32), torch.arange(9)[None]
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 40}


class Core(nn.Module):
    """Attention that holds nothing."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Direct(nn.Module):
    """Attention that holds parameters and no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 16))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.weight).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


@register_adapter(registry.class_name(Core), registry.class_name(Direct))
class Returned(PostHook):
    def shape(self, module: nn.Module) -> HeadShape:
        return HeadShape(2, 8)

    def layout(self, module: nn.Module) -> Layout:
        return Layout(8, "split")


class WithCore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.core, self.proj = nn.Linear(16, 48), Core(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return self.proj(self.core(q, k, v).transpose(1, 2).flatten(2))


def vit() -> nn.Module:
    model = timm.create_model("vit_relpos_base_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=3)
    for block in model.blocks:  # small layer scales would hide what attention does
        nn.init.ones_(block.ls1.gamma)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "torch": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), 2),
        SEQUENCES,
    ),
    "pre-hook": (vit, IMAGES),
    "attention interface": (lambda: transformers.BertModel(transformers.BertConfig(**SIZES)), TOKENS),
    "child module": (lambda: nn.Sequential(MultiheadAttention(16, 2, precondition=None)), SEQUENCES),
    "forward hook, nothing held": (lambda: nn.Sequential(WithCore(), WithCore()), SEQUENCES),
    "forward hook, parameters": (lambda: nn.Sequential(Direct(), nn.Flatten(-2)), SEQUENCES),
}


def run(model: nn.Module, given: Tensor) -> Tensor:
    out = model(given)
    return out if isinstance(out, Tensor) else out[0]


@pytest.mark.parametrize("name", MODELS)
def test_compiled_code_of_a_plain_twin_is_not_taken(name: str) -> None:
    build, given = MODELS[name]
    plain = build().eval()
    converted = copy.deepcopy(plain)
    precondition_(converted)
    models = [plain, converted]
    expected = [run(model, given) for model in models]
    assert relative_error(*expected) > 1e-3
    for order in ([0, 1, 0], [1, 0, 1]):
        torch.compiler.reset()
        for i in order:
            compiled = torch.compile(models[i], backend="eager")
            assert relative_error(run(compiled, given), expected[i]) <= 1e-5


@pytest.mark.parametrize("name", ["forward hook, nothing held", "torch"])
def test_nor_that_of_its_parts(name: str) -> None:
    build, given = MODELS[name]
    plain = build().eval()
    converted = copy.deepcopy(plain)
    precondition_(converted)
    expected = [run(model, given) for model in (plain, converted)]
    torch.compiler.reset()
    for model, output in zip((plain, converted), expected, strict=True):
        for part in model.layers if hasattr(model, "layers") else model:
            part.compile(backend="eager")
        assert relative_error(run(model, given), output) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_restored_models_hold_what_they_held_as_they_held_it(name: str) -> None:
    model = MODELS[name][0]().eval()
    before = [list(module.named_children()) for module in model.modules()]
    for _ in range(2):
        precondition_(model)
        dicts = {type(part) for module in model.modules() for part in (module._modules, module._parameters)}
        assert dicts == {dict, OrderedDict}
        restore_(model)
        kinds = {type(d) for m in model.modules() for d in (m._modules, m._parameters, m._buffers)}
        assert kinds == {dict}
    assert [list(module.named_children()) for module in model.modules()] == before
