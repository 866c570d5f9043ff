"""transformers: every module that looks its attention function up in `ALL_ATTENTION_FUNCTIONS`.

One wrapper around that look-up, installed once when this file is imported. The function it hands out is the one that
was asked for, and it passes the output on untouched unless the calling module has a :class:`Preconditioner` as its
child. So masks, implementation names, caches and every other model stay as they are, and a model that switches its
implementation stays converted. A second wrapper, round `save_pretrained`, is inert for models without one too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from ....layers import Preconditioner
from ...normalized import normalized_already
from ...registry import Adapter, HeadShape, class_name, read_int, register_finder, register_likeness
from ...saving.config_entry import conversion_entry
from ...saving.standalone import preconditioned_folder
from ...source_texts.known_texts import is_read_lookup, known_texts, versions_read
from ...source_texts.reachable_code import Reached, reachable_from
from . import sdpa
from .unsupported import UNSUPPORTED

_INNER_NORMS = ("attn_sub_norm", "inner_attn_ln")  # what norms of the merged heads are called


class DispatchedPreconditioner(Preconditioner):
    """The preconditioner of a module that dispatches. Unpickling it imports this file, which installs the wrapper."""


class Interface(Adapter):
    """The module's preconditioner is its own flag: the wrapper looks for it at every call."""

    mechanism = "attention interface"
    honors_backend = True

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """Modules that may go around the look-up, and one head before a norm."""
        if getattr(module, "reorder_and_upcast_attn", False):
            return "reorder_and_upcast_attn=True computes eager attention without the look-up; set it to False"
        norms = (getattr(module, name, None) for name in _INNER_NORMS)
        shape = self.shape(module)
        return next((why for norm in norms if (why := normalized_already(norm, shape)) is not None), None)

    def shape(self, module: nn.Module) -> HeadShape:
        """From the attribute names in use across the models, the module's own before its config's; or a projection."""
        num_heads, head_dim, width = (
            read_int(module, *names) or read_int(getattr(module, "config", None), *names)
            for names in (
                ("num_heads", "num_attention_heads", "n_heads", "n_head", "decoder_self_attention_heads"),
                ("v_head_dim", "head_dim", "attention_head_size", "key_value_proj_dim"),
                ("embed_dim", "hidden_size"),
            )
        )
        projections = (getattr(module, name, None) for name in ("o_proj", "out_proj", "proj"))
        merged = next((found for p in projections if (found := read_int(p, "in_features"))), width)
        if head_dim is None and num_heads and merged:
            head_dim = merged // num_heads
        return HeadShape(num_heads, head_dim)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Make the child one that brings the wrapper along when the model is unpickled elsewhere."""
        if type(preconditioner) is Preconditioner:  # a probe, which only looks, stays one
            preconditioner.__class__ = DispatchedPreconditioner

    def detach(self, module: nn.Module) -> None:
        """Nothing: without its child the module is as it was."""


_INTERFACE = Interface()


@register_finder
def find_dispatching(cls: type[nn.Module]) -> Adapter | None:
    """The adapter, if what ``cls`` runs looks its attention function up and is a text that was read.

    By the text, not the name: so copies in other files and code of a checkpoint's author are served, too.
    """
    reached = reachable_from(cls)
    if not _looks_up(reached):
        return None
    return _INTERFACE if class_name(cls) in UNSUPPORTED or is_read_lookup(reached, "transformers") else None


@register_likeness
def like_dispatching(cls: type[nn.Module]) -> str | None:
    """Of a class that looks its attention function up, or once did, that nobody has read what it computes."""
    names = known_texts()["transformers"]["look_ups"]
    if not _looks_up(reachable_from(cls)) and not any(class_name(base) in names for base in cls.__mro__):
        return None
    return (
        f"its code is none of those that look attention up in ALL_ATTENTION_FUNCTIONS and were read in "
        f"{versions_read('transformers')}: what it returns may be no head's row"
    )


def _looks_up(reached: Reached) -> bool:
    return {"ALL_ATTENTION_FUNCTIONS", "get_interface"} <= reached.names()


def _attend(
    attention: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> Any:
    """``attention`` and the calling module's preconditioner, if it has one: in one where that is known, or in turn."""
    preconditioner = getattr(module, "preconditioner", None)
    if not isinstance(preconditioner, Preconditioner):
        return attention(module, query, key, value, attention_mask, **options)
    if attention is sdpa_attention_forward and sdpa.supports(module, query, options):
        return sdpa.attend(preconditioner, module, query, key, value, attention_mask, options)
    rows_BNHd, *rest = attention(module, query, key, value, attention_mask, **options)
    return preconditioner(rows_BNHd.transpose(1, 2)).transpose(1, 2).contiguous(), *rest


def _install() -> None:
    if not hasattr(AttentionInterface, "get_interface"):
        raise ImportError("this transformers has no AttentionInterface.get_interface; install transformers >= 5.1")
    look_up = AttentionInterface.get_interface

    @functools.wraps(look_up)
    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        # Made anew at each look-up: a cache would keep torch.compile from seeing through it.
        return functools.partial(_attend, look_up(self, *args, **kwargs))

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]


_install()
preconditioned_folder.install(conversion_entry)
