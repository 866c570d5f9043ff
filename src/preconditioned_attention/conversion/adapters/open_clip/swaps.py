"""open_clip: its own `Attention` and the attention pooling of its ResNets.

Its ordinary transformers are built of `nn.MultiheadAttention`, see `torch`; its timm and Hugging Face towers are
those libraries' classes.
"""

from __future__ import annotations

import torch
from open_clip import modified_resnet as upstream
from torch import Tensor, nn

from ....layers import Preconditioner
from ...mechanisms import ClassSwap, PreHook, text_digest
from ...normalized import normalised_already
from ...registry import HeadShape, composites_named, read_int, register_named

KNOWN_POOL = "6b9e82cf44216015"  # digest of the pooling's upstream forward, open_clip 3.3.0

composites_named(
    "open_clip.loss.DistillClipLoss",  # its softmax is over a batch's logits
    "open_clip.transformer.AttentionalPooler",  # holds an `nn.MultiheadAttention`
)


class PreconditionedAttentionPool2d(upstream.AttentionPool2d):
    """`AttentionPool2d` whose heads' outputs pass through its preconditioner."""

    preconditioner: Preconditioner

    def forward(self, x: Tensor) -> Tensor:
        """As upstream: ``(B, C, H, W)`` in, ``(B, output_dim)`` out; the one query is the mean of all positions."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        projected = (self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in projected)
        return self.c_proj(self.preconditioner.attend(q, k, v).flatten(1))


@register_named("open_clip.modified_resnet.AttentionPool2d")
class AttentionPoolSwap(ClassSwap):
    """The exact class, with a forward that is known: upstream's hands its projections to a functional."""

    kind = "pooling"
    honours_backend = True
    original = upstream.AttentionPool2d
    replacement = PreconditionedAttentionPool2d

    def serves(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether upstream's forward is the one that the replacement was written against."""
        return super().serves(cls, registered) and text_digest(registered.forward) == KNOWN_POOL

    def shape(self, module: nn.Module) -> HeadShape:
        """From the number of heads and the width of the values."""
        heads, width = read_int(module, "num_heads"), read_int(module.v_proj, "out_features")
        return HeadShape(heads, width // heads if heads and width else None)


@register_named("open_clip.transformer.Attention")
class AttentionHook(PreHook):
    """`ln_inner` is always called, with the merged heads, and does nothing unless the model has an inner norm."""

    point = "ln_inner"

    def refusal(self, module: nn.Module) -> str | None:
        """What stands between the heads and the hook, or no module to hook."""
        if module.head_scale is not None:
            return "with scale_heads=True the heads are scaled before the first module that sees them"
        if not isinstance(getattr(module, "ln_inner", None), nn.Module):
            return "this open_clip's Attention has no `ln_inner` module; install open_clip_torch >= 3.0"
        return normalised_already(module.ln_inner, self.shape(module))

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "head_dim"))
