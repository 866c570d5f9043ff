"""The part of torchtitan 0.3.0's protocol that a converter of model configs uses, since torchtitan is not installed."""

from __future__ import annotations

import types
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class Configurable:
    """A class with a config that builds it."""

    @dataclass(kw_only=True, slots=True)
    class Config:
        _owner: ClassVar[type | None] = None

        def traverse(self, kinds: Any, _prefix: str = "") -> Any:
            """Name, config, parent and attribute of every nested config of one of ``kinds``."""
            for field in fields(self):
                value, name = getattr(self, field.name), f"{_prefix}.{field.name}".lstrip(".")
                for key, item, parent, attribute in (
                    [(f"{name}.{i}", item, value, i) for i, item in enumerate(value)]
                    if isinstance(value, list)
                    else [(name, value, self, field.name)]
                ):
                    if isinstance(item, kinds):
                        yield key, item, parent, attribute
                    elif hasattr(item, "traverse"):
                        yield from item.traverse(kinds, key)

        def build(self) -> Any:
            return self._owner(config=replace(self))

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "Config" in vars(cls):
            cls.Config._owner = cls


class ModelConfigConverter(Configurable):
    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        pass


class Module(nn.Module, Configurable):
    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        param_init: dict | None = None
        sharding_config: Any = None


def _inner_attention(name: str) -> type[Module]:
    class Inner(Module):
        @dataclass(kw_only=True, slots=True)
        class Config(Module.Config):
            pass

        def __init__(self, config: Any) -> None:
            super().__init__()

        def forward(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = True, **_: Any) -> Tensor:
            heads = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(*heads, is_causal=is_causal).transpose(1, 2)

    Inner.__name__ = name
    return Inner


@dataclass(kw_only=True, slots=True)
class Layer(Configurable.Config):
    inner_attention: Any
    norm: Any = None


@dataclass(kw_only=True, slots=True)
class Model(Configurable.Config):
    layers: list[Layer]


def modules() -> dict[str, types.ModuleType]:
    """For `sys.modules`."""
    names = ("", ".models", ".models.common", ".models.common.attention", ".protocols", ".protocols.model")
    found = {f"torchtitan{name}": types.ModuleType(f"torchtitan{name}") for name in names}
    for name in ("FlexAttention", "ScaledDotProductAttention", "VarlenAttention"):
        setattr(found["torchtitan.models.common.attention"], name, _inner_attention(name))
    found["torchtitan.protocols.model"].ModelConfigConverter = ModelConfigConverter  # type: ignore[attr-defined]
    return found
