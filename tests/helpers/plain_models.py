"""Small unconverted models of other libraries and what they compute. Imports nothing of this project.

As a program: ``python -m tests.helpers.plain_models FILE`` saves what all of them compute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import timm
import torch
import transformers
from torch import Tensor, nn

_TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 40}
_SMALL = {"img_size": 32, "num_classes": 5}
_WINDOWS = {"window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm, class swap": lambda: timm.create_model("vit_tiny_patch16_224", depth=2, **_SMALL),
    "timm, pre-hook": lambda: timm.create_model(
        "vit_relpos_base_patch16_224", depth=2, embed_dim=24, num_heads=3, **_SMALL
    ),
    "timm, windows": lambda: timm.create_model("swin_tiny_patch4_window7_224", **_SMALL, **_WINDOWS),
    "timm, channels": lambda: timm.create_model("xcit_nano_12_p16_224", depth=2, **_SMALL),
    "transformers, interface": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_TEXT, num_key_value_heads=2)
    ),
    "transformers, eager interface": lambda: transformers.BertModel(
        transformers.BertConfig(**_TEXT, attn_implementation="eager")
    ),
    "transformers, pre-hook": lambda: transformers.GPTJModel(
        transformers.GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, vocab_size=40)
    ),
    "transformers, forward hook": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**_TEXT)),
    "transformers, class swap": lambda: transformers.XLNetModel(
        transformers.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=32, vocab_size=40)
    ),
    "torch, class swap": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 32, batch_first=True), 2),
}


def build(name: str) -> nn.Module:
    """The model with seeded weights, in evaluation; a step of training leaves its batch statistics as they are."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    return model


def numbers(name: str, model: nn.Module) -> Tensor:
    """What the model computes in evaluation and in a step of training: outputs, loss and every gradient."""
    draw = torch.Generator().manual_seed(1)
    library = name.partition(",")[0]
    given: dict[str, Callable[[], Tensor]] = {
        "timm": lambda: torch.randn(2, 3, 32, 32, generator=draw),
        "transformers": lambda: torch.randint(3, 40, (2, 9), generator=draw),
        "torch": lambda: torch.randn(2, 9, 24, generator=draw),
    }
    x = given[library]()
    with torch.no_grad():
        plain = _first(model.eval()(x))
    torch.manual_seed(2)
    trained = _first(model.train()(x))
    loss = trained.square().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    model.eval()
    parts = [plain, trained.detach(), loss.detach(), *(g for g in gradients if g is not None)]
    return torch.cat([part.flatten() for part in parts])


def _first(out: object) -> Tensor:
    found = out if isinstance(out, Tensor) else next(iter(out.values()))
    assert isinstance(found, Tensor)
    return found


if __name__ == "__main__":
    computed = {name: numbers(name, build(name)) for name in MODELS}
    assert "preconditioned_attention" not in sys.modules, "this process is to know nothing of the project"
    torch.save(computed, sys.argv[1])
