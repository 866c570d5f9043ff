"""The base class of the attention layers: heads, projections, and an optional preconditioner."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_integer
from ..config import ROW_BACKENDS, PreconditionConfig
from ..ops.context_parallel import refuse_context_parallel
from .preconditioner import Preconditioner, drop_completed_mark

PAPER = PreconditionConfig()  # frozen, so one instance is every layer's default


class AttentionLayer(nn.Module):
    """Base of the layers. A preconditioned one has a child named ``preconditioner``, a plain one has no such child.

    The child is looked up at every call, so that `precondition_` and `restore_` may add and remove it.

    Args:
        dim: width of the input and of the output.
        num_heads: number of (query) heads.
        head_dim: width of a head; None: ``dim // num_heads``.
        proj_bias: whether the output projection has a bias.
        proj_drop: dropout of the output.
        precondition: the method's options; None: plain attention.
        value_skip: whether a skip is added to the heads' outputs, so that ``placement`` has a meaning.

    Raises:
        ValueError: sizes that do not fit each other; rows of one entry, of which a preconditioner would leave the sign;
            a ``placement`` or ``backend`` that this layer does not support.
        TypeError: ``precondition`` is neither a :class:`PreconditionConfig` nor None.
    """

    fused: ClassVar[bool] = False  # whether the heads' outputs are softmax attention that one kernel computes

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        precondition: PreconditionConfig | None,
        value_skip: bool = False,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.dim = check_integer("dim", dim, minimum=1)
        self.num_heads = check_integer("num_heads", num_heads, minimum=1)
        if head_dim is None and dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads unless head_dim is given; got {dim} and {num_heads}")
        self.head_dim = dim // num_heads if head_dim is None else check_integer("head_dim", head_dim, minimum=1)
        if precondition is not None:
            self._check_config(precondition, value_skip)
            self.preconditioner = Preconditioner(precondition, num_heads=num_heads, device=device, dtype=dtype)
            self.preconditioner.origin = "layer"
            self.register_load_state_dict_pre_hook(drop_completed_mark)
        self.proj = nn.Linear(num_heads * self.head_dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"dim={self.dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"

    def _check_config(self, config: PreconditionConfig, value_skip: bool) -> None:
        name = type(self).__name__
        if not isinstance(config, PreconditionConfig):
            raise TypeError(f"precondition must be a PreconditionConfig, or None for plain attention; got {config!r}")
        if self.head_dim == 1:
            raise ValueError(
                "head_dim must be at least 2: rows of one entry, equilibrated, are signs; use fewer heads, or "
                "precondition=None"
            )
        if config.placement != "pre_skip" and not value_skip:
            raise ValueError(
                f"placement={config.placement!r} concerns attention that adds a skip to its output, and this {name} "
                "adds none; leave placement at 'pre_skip'"
            )
        if config.backend not in ROW_BACKENDS and not self.fused:
            raise ValueError(
                f"backend={config.backend!r} does not support {name}, whose rows are not those of softmax attention "
                "over tokens; use 'auto' or 'composition'"
            )

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape (B, N, dim) with dim = {self.dim}; got {tuple(x.shape)}")
        if not self.fused:
            refuse_context_parallel(type(self).__name__)

    def _preconditioner(self) -> Preconditioner | None:
        return getattr(self, "preconditioner", None)

    def _precondition(self, rows: Tensor) -> Tensor:
        """`C A`, or `A` if the layer is plain; ``(B, H, N, d)``."""
        preconditioner = self._preconditioner()
        return rows if preconditioner is None else preconditioner(rows)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`C Attn(q, k, v)` by the fused function, or `Attn(q, k, v)` if the layer is plain."""
        preconditioner = self._preconditioner()
        function = F.scaled_dot_product_attention if preconditioner is None else preconditioner.attend
        return function(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, enable_gqa=enable_gqa)

    def _merge(self, heads: Tensor) -> Tensor:
        """Merge ``(B, H, N, d)`` into ``(B, N, H d)`` and project to ``(B, N, dim)``."""
        return self.proj_drop(self.proj(heads.transpose(1, 2).flatten(2)))


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """``(B, N, H d)`` as ``(B, H, N, d)``."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def split_qkv(qkv: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values that one projection made, ``(B, N, 3 H d)``, as three tensors ``(B, H, N, d)``."""
    q, k, v = (split_heads(x, head_dim) for x in qkv.chunk(3, dim=-1))
    return q, k, v


def check_key_padding_mask(mask: Tensor, x: Tensor) -> None:
    """Raise unless ``mask`` is boolean, one entry per token of ``x``, ``(B, N, dim)``."""
    if mask.dtype != torch.bool:
        raise TypeError(f"key_padding_mask must be boolean (True: a padded token); got {mask.dtype}")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"key_padding_mask must have shape (B, N) = {tuple(x.shape[:2])}; got {tuple(mask.shape)}")
