"""Small models of every mechanism and of the families that deployment tools are tried on, plain and converted."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import transformers
from torch import Tensor, nn
from torchvision.models import maxvit, swin_transformer, vision_transformer

from preconditioned_attention import PreconditionConfig, layers, precondition_
from preconditioned_attention.selection import Include
from tests.helpers.explicit import relative_error
from tests.helpers.oracle import jitter_

SEED = 0
INCLUDE: Include = ("softmax", "channel", "class_attention")


class Encoder(nn.Module):
    """`TransformerEncoder` as a user holds it, with a layer before and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 24)
        layer = nn.TransformerEncoderLayer(24, 2, 48, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(dim=1))


class OwnLayers(nn.Module):
    """Three of this package's layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 24)
        self.attention = layers.MultiheadAttention(24, 3, precondition=None)
        self.channels = layers.CrossCovarianceAttention(24, 3, precondition=None)
        self.nystrom = layers.NystromAttention(24, 3, num_landmarks=4, precondition=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.nystrom(self.channels(self.attention(self.embed(x)))).mean(dim=1)


class LanguageModel(nn.Module):
    """A causal language model of transformers, to be called with tokens alone."""

    def __init__(self, name: str, **sizes: int) -> None:
        super().__init__()
        config = transformers.AutoConfig.for_model(name, vocab_size=50, use_cache=False, **sizes)
        self.model = transformers.AutoModelForCausalLM.from_config(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits


@dataclass(frozen=True)
class Family:
    """How to build a plain model, and one input."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]

    def plain(self) -> nn.Module:
        torch.manual_seed(SEED)
        return jitter_(self.build().eval())  # small layer scales and zeroed heads would hide attention

    def converted(self, config: PreconditionConfig | None = None) -> nn.Module:
        model = self.plain()
        precondition_(model, config, include=INCLUDE, strict=True)
        return model


def from_timm(name: str, **sizes: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **sizes)


def images(size: int = 32) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def sequences() -> Tensor:
    return torch.randn(2, 10, 12, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    return torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def torchvision_vit() -> nn.Module:
    return vision_transformer.VisionTransformer(32, 8, 2, 3, 24, 48, num_classes=5)


def torchvision_swin() -> nn.Module:
    return swin_transformer.SwinTransformer([4, 4], 24, [1, 2], [3, 6], [4, 4], num_classes=5)


def torchvision_maxvit() -> nn.Module:
    return maxvit.MaxVit((64, 64), 8, 2, [16], [1], 8, 0.0, num_classes=5)


VIT = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 3}
FAMILIES = {
    "vit": Family(from_timm("vit_tiny_patch16_224", **VIT), images()),
    "beit": Family(from_timm("beit_base_patch16_224", **VIT), images()),
    "swin": Family(
        from_timm(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 2), embed_dim=24, num_heads=(3, 6)
        ),
        images(),
    ),
    "davit": Family(
        from_timm("davit_tiny", depths=(1, 1), embed_dims=(24, 48), num_heads=(3, 6), window_size=4), images()
    ),
    "xcit": Family(from_timm("xcit_nano_12_p16_224", **VIT), images()),
    "maxvit": Family(
        from_timm("maxvit_rmlp_pico_rw_256", img_size=64, embed_dim=(32, 32, 32, 32), depths=(1, 1, 1, 1)), images(64)
    ),
    "torchvision vit": Family(torchvision_vit, images()),
    "torchvision swin": Family(torchvision_swin, images()),
    "torchvision maxvit": Family(torchvision_maxvit, images(64)),
    "encoder": Family(Encoder, sequences),
    "own layers": Family(OwnLayers, sequences),
}


def assert_is_converted(out: Tensor, family: Family, within: float = 1e-5) -> None:
    """``out`` is what the converted model computes, and far from what the plain one does."""
    x = family.inputs()
    with torch.no_grad():
        assert relative_error(out, family.converted()(x)) <= within
        assert relative_error(out, family.plain()(x)) > max(1e-3, 3 * within)


LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LANGUAGE = {
    "gpt2": Family(lambda: LanguageModel("gpt2", n_embd=24, n_layer=2, n_head=3, n_positions=32), tokens),
    "llama": Family(lambda: LanguageModel("llama", **LLAMA), tokens),
}


def trained_a_little(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy, one step of gradient descent further."""
    model = copy.deepcopy(model)
    model(x).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
    model.zero_grad()
    return model
