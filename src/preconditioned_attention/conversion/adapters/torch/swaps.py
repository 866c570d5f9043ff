"""torch.nn: `MultiheadAttention`, also inside `TransformerEncoder` and `TransformerDecoder`.

`MultiheadAttention` passes the weight of its output projection to a function, so that hooks on the projection are never
called, and in evaluation `TransformerEncoderLayer` reads its parameters and does not call it. Hence a class swap, and a
pre-hook that does nothing: with a hook on a submodule, PyTorch does not use its encoder fast path.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...._symbolic import one_node
from ....layers import Preconditioner
from ....ops.context_parallel import refuse_context_parallel
from ...adapter import HeadShape, read_int
from ...mechanisms import ClassSwap
from ...registry import register_named


class PreconditionedMultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose heads' outputs pass through its preconditioner.

    The arguments of `forward` are the same. Two differences: a query that may attend to no key gets a
    zero row (there: NaN if weights are asked for), and `is_causal` together with added biases or zeros keeps
    `attn_mask`.
    """

    preconditioner: Preconditioner

    @one_node
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output and, if asked for, weights; shapes as in :class:`torch.nn.MultiheadAttention`."""
        if query.is_nested:
            if key is not query or value is not query or key_padding_mask is not None or attn_mask is not None:
                raise ValueError("nested input needs self-attention without masks: pad the sequences instead")
            return self._forward_nested(query, need_weights, average_attn_weights)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True says that attn_mask is the causal mask, and attn_mask is None; pass it")
        batched = query.dim() == 3
        query, key, value = (self._batch_first(x) for x in (query, key, value))
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        mask = self._mask(query, key, attn_mask, key_padding_mask)
        causal = is_causal and key_padding_mask is None and self.bias_k is None and not self.add_zero_attn
        heads, weights = self._attend(*self._project(query, key, value), mask, need_weights=need_weights, causal=causal)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In-projections, split into heads, with the module's extra key and value appended: (B, H, L or S, d)."""
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if self._qkv_same_embed_dim and query is key and key is value:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            matrices = self.in_proj_weight.chunk(3) if self._qkv_same_embed_dim else separate
            q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1).to(k.dtype)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1).to(v.dtype)], dim=1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def _mask(
        self, query: Tensor, key: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """Both masks as one, broadcastable to (B, H, L, S): boolean (True: attend) or additive."""
        masks = [] if attn_mask is None else [self._per_head(attn_mask, query, key)]
        if key_padding_mask is not None:
            masks.append(_per_key(key_padding_mask, key))
        if not masks:
            return None
        extra = (self.bias_k is not None) + self.add_zero_attn  # the module's extra keys are never masked
        if all(mask.dtype == torch.bool for mask in masks):
            return F.pad(~torch.stack(torch.broadcast_tensors(*masks)).any(dim=0), (0, extra), value=True)
        additive = [_additive(mask, query.dtype) for mask in masks]
        return F.pad(additive[0] if len(additive) == 1 else additive[0] + additive[1], (0, extra))

    def _per_head(self, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """`attn_mask`, broadcastable to (B, H, L, S)."""
        _check_mask("attn_mask", mask)
        length, keys = query.shape[1], key.shape[1]
        whole, each = (length, keys), (query.shape[0] * self.num_heads, length, keys)
        if mask.shape not in (whole, each):
            raise ValueError(
                f"attn_mask must have shape (L, S) = {whole} or (B * num_heads, L, S) = {each}; got {tuple(mask.shape)}"
            )
        return mask if mask.dim() == 2 else mask.unflatten(0, (-1, self.num_heads))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, need_weights: bool, causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Preconditioned heads (B, H, L, d) and the weights (B, H, L, S) where they are asked for."""
        dropout_p = self.dropout if self.training else 0.0
        if not need_weights:
            mask = None if causal else mask
            return self.preconditioner.attend(q, k, v, mask, dropout_p, is_causal=causal), None
        refuse_context_parallel("MultiheadAttention with need_weights=True", "need_weights=False")
        scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        nowhere = (scores == -math.inf).all(dim=-1, keepdim=True)
        weights = scores.masked_fill(nowhere, 0.0).softmax(dim=-1).masked_fill(nowhere, 0.0)
        weights = F.dropout(weights, dropout_p, training=dropout_p > 0)
        return self.preconditioner(weights @ v), weights

    def _forward_nested(
        self, x: Tensor, need_weights: bool, average_attn_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Nested self-attention (what `TransformerEncoder` sends in evaluation): pad, attend, cut to length again."""
        if x.layout != torch.strided:
            raise ValueError(f"nested input needs the strided layout; got {x.layout}: pad the sequences instead")
        if not self.batch_first:
            raise ValueError("nested input needs batch_first=True: a nested tensor is a batch of sequences")
        lengths = [sequence.shape[0] for sequence in x.unbind()]
        padded = torch.nested.to_padded_tensor(x, 0.0)
        padding = torch.arange(padded.shape[1], device=x.device) >= torch.tensor(lengths, device=x.device)[:, None]
        out, weights = self.forward(padded, padded, padded, padding, need_weights, None, average_attn_weights)
        cut = [row[:length] for row, length in zip(out, lengths, strict=True)]
        return torch.nested.as_nested_tensor(cut), weights


def _per_key(mask: Tensor, key: Tensor) -> Tensor:
    """`key_padding_mask`, broadcastable to (B, H, L, S)."""
    _check_mask("key_padding_mask", mask)
    if mask.shape != key.shape[:2]:
        raise ValueError(f"key_padding_mask must have shape (B, S) = {tuple(key.shape[:2])}; got {tuple(mask.shape)}")
    return mask[:, None, None, :]


def _check_mask(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{name} must be boolean (True: do not attend) or floating point (added); got {mask.dtype}")


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of `MultiheadAttention` (True: do not attend) as what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)


def leave_fast_path(module: nn.Module, args: tuple[Any, ...]) -> None:
    """A pre-hook that does nothing; because of it `TransformerEncoderLayer` calls its attention."""


@register_named("torch.nn.modules.activation.MultiheadAttention")
class MultiheadAttentionSwap(ClassSwap):
    """The exact class, in all its modes."""

    honors_backend = True
    original = nn.MultiheadAttention
    replacement = PreconditionedMultiheadAttention

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "head_dim"))

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Swap the class in and turn the encoder's fast path off."""
        super().attach(module, preconditioner)
        module.register_forward_pre_hook(leave_fast_path)

    def detach(self, module: nn.Module) -> None:
        """Swap the class back and allow the fast path again."""
        super().detach(module)
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is leave_fast_path]:
            del module._forward_pre_hooks[key]
