"""Heads of six real architectures, small and with random weights, taken apart by plain hooks.

``python -m tests.helpers.activations`` prints what docs/conditioning.md reports of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from preconditioned_attention.diagnostics import condition_number, mean_direction_share, row_norm_spread
from preconditioned_attention.diagnostics.theory import (
    Inequality,
    linear_attention_bound,
    linear_attention_head_bound,
    optimal_row_scaling,
    row_equilibration_bound,
    softmax_attention_bound,
    softmax_attention_head_bound,
)


@dataclass(frozen=True, kw_only=True)
class Heads:
    """One attention module: ``weights @ values`` is `A`, or `A^T` where attention is over channels."""

    name: str
    rows: Tensor  # A, (B, H, N, d)
    weights: Tensor  # softmax matrices, (B, H, N, N) or (B, H, d, d)
    values: Tensor  # (B, H, N, d) or (B, H, d, N)
    x: Tensor  # what the projections see, (B, 1, N, D)
    projections: tuple[Tensor, Tensor, Tensor]  # W_Q, W_K, W_V of every head, (H, D, d)
    over_channels: bool


def split(merged: Tensor, heads: int) -> Tensor:
    """``(B, N, H d) -> (B, H, N, d)``."""
    return merged.unflatten(-1, (heads, -1)).transpose(1, 2)


def projected(module: nn.Module, x: Tensor, fused: Callable[[Tensor], Tensor], heads: int) -> list[Tensor]:
    return [split(part, heads) for part in fused(x).chunk(3, dim=-1)]


def fused_weights(weight: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(3 H d, D)`` to three times ``(H, D, d)``."""
    q, k, v = (part.unflatten(0, (heads, -1)).mT for part in weight.chunk(3))
    return q, k, v


def softmax_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    scores = q @ k.mT / q.size(-1) ** 0.5
    return (scores if bias is None else scores + bias).softmax(dim=-1)


def timm_tokens(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = projected(module, x, module.qkv, module.num_heads)
    bias = module._get_rel_pos_bias() if hasattr(module, "_get_rel_pos_bias") else None
    return softmax_weights(q, k, bias), v


def xcit_channels(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (part.mT for part in projected(module, x, module.qkv, module.num_heads))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return (q @ k.mT * module.temperature).softmax(dim=-1), v


def davit_channels(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = projected(module, x, module.qkv, module.num_heads)
    return (k.mT * module.scale @ v).softmax(dim=-1), q.mT


def gpt2_tokens(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = projected(module, x, module.c_attn, module.num_heads)
    later = torch.ones(x.size(1), x.size(1)).triu(1).bool()
    return softmax_weights(q, k, torch.zeros(later.shape).masked_fill(later, -torch.inf).to(x)), v


def bert_tokens(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    own, heads = module.self, module.self.num_attention_heads
    q, k, v = (split(linear(x), heads) for linear in (own.query, own.key, own.value))
    return softmax_weights(q, k), v


def models() -> Iterator[tuple[str, nn.Module, Tensor, str, Callable]]:
    """Name, model, input, the path of one attention, and how to take it apart."""
    images, text = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.randint(50, (2, 48))
    sizes = {"img_size": 64, "num_classes": 0, "depth": 2, "embed_dim": 32, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", patch_size=8, **sizes)
    yield "vit_tiny", vit, images, "blocks.1.attn", timm_tokens
    xcit = timm.create_model("xcit_nano_12_p8_224", **sizes)
    yield "xcit_nano", xcit, images, "blocks.1.attn", xcit_channels
    stages = {"img_size": 64, "num_classes": 0, "window_size": 8, "embed_dim": 16, "depths": (2,), "num_heads": (2,)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **stages)
    yield "swin_tiny", swin, images, "layers.0.blocks.0.attn", timm_tokens
    small = {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 2), "window_size": 4, "num_classes": 0}
    davit = timm.create_model("davit_tiny", **small)
    yield "davit_tiny", davit, images, "stages.1.blocks.0.1.attn", davit_channels
    config = transformers.GPT2Config(n_embd=32, n_head=2, n_layer=2, n_positions=64, vocab_size=50)
    yield "gpt2", transformers.GPT2Model(config), text, "h.1.attn", gpt2_tokens
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=50, **shape))
    yield "bert", bert, text, "encoder.layer.1.attention", bert_tokens


def weights_of(module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    if hasattr(module, "qkv"):
        return fused_weights(module.qkv.weight, module.num_heads)
    if hasattr(module, "c_attn"):
        return fused_weights(module.c_attn.weight.mT, module.num_heads)
    linears = (module.self.query, module.self.key, module.self.value)
    return fused_weights(torch.cat([linear.weight for linear in linears]), module.self.num_attention_heads)


def trained_norms(model: nn.Module) -> None:
    """As after training, LayerNorm's scale and shift differ from channel to channel."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.3)
            nn.init.normal_(module.bias, std=0.3)


@torch.no_grad()
def heads_of_architectures(*, norms_as_trained: bool) -> Iterator[Heads]:
    """One attention of each architecture, in float64."""
    torch.manual_seed(0)
    for name, model, given, path, taken_apart in models():
        if norms_as_trained:
            trained_norms(model)
        model = model.double().eval()
        attention = model.get_submodule(path)
        output = next(getattr(attention, part) for part in ("proj", "c_proj", "output") if hasattr(attention, part))
        seen: list[Tensor] = []
        hooks = [
            attention.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0])),
            (output.dense if name == "bert" else output).register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0])
            ),
        ]
        model(given)
        for hook in hooks:
            hook.remove()
        x, merged = seen[:2]
        weights, values = taken_apart(attention, x)
        yield Heads(
            name=name,
            rows=split(merged, weights.size(1)),
            weights=weights,
            values=values,
            x=x[:, None],
            projections=weights_of(attention),
            over_channels=taken_apart in (xcit_channels, davit_channels),
        )


def inequalities(heads: Heads) -> Iterator[Inequality]:
    """Every inequality that speaks of this attention."""
    yield row_equilibration_bound(heads.rows, condition_number(heads.rows).value)
    yield softmax_attention_head_bound(heads.weights, heads.values)
    if not heads.over_channels:
        yield softmax_attention_bound(heads.weights, heads.x, heads.projections[2])
    yield linear_attention_bound(heads.x, *heads.projections)
    yield linear_attention_head_bound(heads.x, *heads.projections)


def main() -> None:
    """Print the tables of docs/conditioning.md."""
    for as_trained in (False, True):
        print(f"\nLayerNorm {'with random scale and shift' if as_trained else 'as initialized'}")
        for heads in heads_of_architectures(norms_as_trained=as_trained):
            first = heads.rows[0, 0]
            best = optimal_row_scaling(first)
            spread, share = row_norm_spread(first).value.item(), mean_direction_share(first).value.item()
            print(
                f"{heads.name}: N x d {first.size(0)} x {first.size(1)}, D {heads.x.size(-1)}; first head: "
                f"kappa {condition_number(first).value.item():.4g}, with C {best.equilibrated:.4g}, best "
                f"{best.kappa:.4g} (at least {best.lower:.4g}), spread {spread:.3g}, mean direction {share:.2g}"
            )
            for inequality in inequalities(heads):
                ratio = (inequality.left / inequality.right).nan_to_num(0).max().item()
                print(f"  {inequality.explain()} Largest left/right {ratio:.3g}.")


if __name__ == "__main__":
    main()
