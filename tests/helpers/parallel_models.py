"""Small models of every form of conversion, their batches, and training steps of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.layers import MultiheadAttention


class OwnBlock(nn.Module):
    """A residual block with a layer of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(16), MultiheadAttention(16, 4, precondition=None)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)


def own_layers() -> nn.Module:
    return nn.Sequential(OwnBlock(), OwnBlock())


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def timm_vit(name: str = "vit_tiny_patch16_224") -> nn.Module:
    small = {"img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 4, "num_classes": 3}
    return timm.create_model(name, **small)


def timm_swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(4, 4),
        num_classes=3,
        drop_path_rate=0.0,
    )


def gpt2() -> nn.Module:
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=4, vocab_size=40, n_positions=16, use_cache=False, tie_word_embeddings=False
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=40, use_cache=False, **sizes))


def vectors(count: int) -> Tensor:
    return torch.randn(count, 6, 16, dtype=torch.float64)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64)


def tokens(count: int) -> Tensor:
    return torch.randint(40, (count, 8))


@dataclass(frozen=True)
class Form:
    """One form of conversion: a model, its batches, and the modules of it that are sharded one by one."""

    build: Callable[[], nn.Module]
    batch: Callable[[int], Tensor]
    blocks: Callable[[Any], list[nn.Module]]


FORMS = {
    "own layers": Form(own_layers, vectors, list),
    "torch encoder": Form(torch_encoder, vectors, lambda model: list(model.layers)),
    "timm ViT": Form(timm_vit, images, lambda model: list(model.blocks)),
    "timm ViT, hooks": Form(lambda: timm_vit("vit_relpos_base_patch16_224"), images, lambda model: list(model.blocks)),
    "timm Swin": Form(timm_swin, images, lambda model: [b for stage in model.layers for b in stage.blocks]),
    "GPT-2": Form(gpt2, tokens, lambda model: list(model.transformer.h)),
    "Llama": Form(llama, tokens, lambda model: list(model.model.layers)),
}
CONFIGS = {
    "full": PreconditionConfig(),
    "stop with a gain": PreconditionConfig(gradient="stop", gain=0.5),
}


def new_model(form: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = FORMS[form].build().to(dtype)
    for name, parameter in model.named_parameters():
        if "gamma" in name:  # small layer scales would hide what attention does
            nn.init.ones_(parameter)
    return model


def loss_of(output: Any) -> Tensor:
    out: Tensor = getattr(output, "logits", output)
    weight = torch.linspace(-1, 1, out[0].numel(), dtype=torch.float64, device=out.device).view(out[0].shape)
    return ((out * weight.to(out.dtype)).sum(dim=tuple(range(1, out.dim()))) + out.square().flatten(1).mean(1)).mean()


def train(model: nn.Module, batches: list[Tensor], *, clip: bool = True) -> list[float]:
    """Some steps of AdamW with clipped gradients; the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for batch in batches:
        loss = loss_of(model(batch))
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
