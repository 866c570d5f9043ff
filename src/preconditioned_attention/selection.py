"""The argument `include` of `precondition_`, which selects kinds of attention: checked, saved and read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeAlias, get_args

from .config import FORMER_FIELDS, PreconditionConfig

AttentionKind = Literal["softmax", "class_attention", "pooling", "channel", "linear"]
Kind: TypeAlias = AttentionKind | Literal["other"]
"""Of an adapter. ``"other"``: attention that has no rows of heads to scale; its adapters reject it with a reason."""

Include: TypeAlias = "Collection[AttentionKind] | Literal['all']"

KINDS: tuple[AttentionKind, ...] = get_args(AttentionKind)
DEFAULT_INCLUDE: tuple[AttentionKind, ...] = ("softmax", "channel")


def check_include(include: Collection[str]) -> tuple[AttentionKind, ...]:
    """The names in ``include``, each once, in the order of :data:`KINDS`.

    Raises:
        TypeError: it is neither a collection of names nor ``"all"``.
        ValueError: it is empty, or a name is unknown.
    """
    if include == "all":
        return KINDS
    if isinstance(include, str) or not isinstance(include, Collection):  # a name by itself is a collection of letters
        example = (*DEFAULT_INCLUDE, include) if include in KINDS and include not in DEFAULT_INCLUDE else KINDS[:1]
        raise TypeError(f"include must be 'all' or several names, such as include={example!r}; got {include!r}")
    known = ", ".join(map(repr, KINDS))
    if not include:
        raise ValueError(f"include must not be empty; the kinds of attention are {known}")
    unknown = [name for name in include if name not in KINDS]
    if unknown:
        raise ValueError(f"include: unknown kind of attention {unknown[0]!r}; the kinds are {known}")
    return tuple(kind for kind in KINDS if kind in include)


def split_options(options: Mapping[str, Any]) -> tuple[PreconditionConfig, tuple[AttentionKind, ...]]:
    """The config and the selection in saved options: those of a config, with ``"include"`` beside them.

    Options that were saved while `PreconditionConfig` had the fields ``class_attention``, ``pooling``, ``channel`` and
    ``linear`` select what those fields selected.

    Raises:
        TypeError, ValueError: an option is unknown or has a value it cannot have.
    """
    rest = dict(options)
    former = {name: rest.pop(name, default) for name, default in FORMER_FIELDS.items()}
    chosen = ("softmax", *(name for name, is_chosen in former.items() if is_chosen))
    include = rest.pop("include", None)
    return PreconditionConfig.from_dict(rest), check_include(chosen if include is None else include)


def join_options(config: PreconditionConfig, include: Collection[AttentionKind]) -> dict[str, Any]:
    """The inverse of :func:`split_options`: plain values, ready for JSON or YAML."""
    return {**config.to_dict(), "include": list(include)}
