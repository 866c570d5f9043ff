"""transformers: modules that look up their attention function in `ALL_ATTENTION_FUNCTIONS`.

Importing this file wraps `AttentionInterface.get_interface` once. The wrapper returns the requested function, whose
output is unchanged unless the calling module has a :class:`Preconditioner` as its child. So masks, implementation
names, caches and all other models stay as they are, and a model that changes its implementation stays converted.
`save_pretrained` is wrapped too, and is unchanged for models without a preconditioner.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from ....layers import Preconditioner
from ....ops.context_parallel import refuse_context_parallel
from ...adapter import Adapter, HeadShape, read_int
from ...class_names import class_name
from ...normalized import normalized_already
from ...registry import register_finder, register_likeness
from ...saving.config_entry import conversion_entry
from ...saving.standalone import preconditioned_folder
from ...source_texts.known_texts import is_reviewed_lookup, known_texts, reviewed_versions
from ...source_texts.reachable_code import Reached, reachable_from
from . import sdpa
from .unsupported import UNSUPPORTED

_INNER_NORMS = ("attn_sub_norm", "inner_attn_ln")  # names of norms of the merged heads


class DispatchedPreconditioner(Preconditioner):
    """The preconditioner of a module that uses the look-up. Unpickling it imports this file."""


class Interface(Adapter):
    """Nothing but the child module: the wrapper checks for it at every call."""

    mechanism = "attention interface"
    honors_backend = True

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """Modules that may bypass the look-up, and one head before a norm."""
        if getattr(module, "reorder_and_upcast_attn", False):
            return "reorder_and_upcast_attn=True computes eager attention without the look-up; set it to False"
        norms = (getattr(module, name, None) for name in _INNER_NORMS)
        shape = self.shape(module)
        return next((why for norm in norms if (why := normalized_already(norm, shape)) is not None), None)

    def shape(self, module: nn.Module) -> HeadShape:
        """From the attribute names in use across the models, of the module or else of its config; or a projection."""
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
        """Change the child's class, so that unpickling the model in another process imports this file."""
        if type(preconditioner) is Preconditioner:  # not a probe of the monitor
            preconditioner.__class__ = DispatchedPreconditioner

    def detach(self, module: nn.Module) -> None:
        """Nothing to undo beside the child."""


_INTERFACE = Interface()


@register_finder
def find_dispatching(cls: type[nn.Module]) -> Adapter | None:
    """The adapter, if the code of ``cls`` looks up its attention function and its source text is known.

    The name does not count, so copies in other files and code that comes with a checkpoint are supported, too.
    """
    reached = reachable_from(cls)
    if not _looks_up(reached):
        return None
    return _INTERFACE if class_name(cls) in UNSUPPORTED or is_reviewed_lookup(reached, "transformers") else None


@register_likeness
def like_dispatching(cls: type[nn.Module]) -> str | None:
    """The reason why a class that looks up its attention function, or did so in another version, is not supported."""
    names = known_texts()["transformers"]["look_ups"]
    if not _looks_up(reachable_from(cls)) and not any(class_name(base) in names for base in cls.__mro__):
        return None
    return (
        "its source text is none of those that look up attention in ALL_ATTENTION_FUNCTIONS and were read in "
        f"{reviewed_versions('transformers')}: what it returns may not be the heads' outputs"
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
    """``attention``, followed by the calling module's preconditioner if it has one, or the fused form of both."""
    preconditioner = getattr(module, "preconditioner", None)
    if not isinstance(preconditioner, Preconditioner):
        return attention(module, query, key, value, attention_mask, **options)
    if attention is sdpa_attention_forward and sdpa.supports(module, query, options):
        return sdpa.attend(preconditioner, module, query, key, value, attention_mask, options)
    if attention is not sdpa_attention_forward and attention.__module__.startswith("transformers."):
        refuse_context_parallel(f"{attention.__name__} of transformers", "attn_implementation='sdpa'")
    rows_BNHd, *rest = attention(module, query, key, value, attention_mask, **options)
    return preconditioner(rows_BNHd.transpose(1, 2)).transpose(1, 2).contiguous(), *rest


def _install() -> None:
    if not hasattr(AttentionInterface, "get_interface"):
        raise ImportError("this transformers has no AttentionInterface.get_interface; install transformers >= 5.1")
    look_up = AttentionInterface.get_interface

    @functools.wraps(look_up)
    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        # A new partial at each look-up: torch.compile does not trace through a cached one.
        return functools.partial(_attend, look_up(self, *args, **kwargs))

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]


_install()
preconditioned_folder.install(conversion_entry)
