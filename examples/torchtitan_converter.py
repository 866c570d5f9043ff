"""A converter of torchtitan's model configs that preconditions every inner attention.

torchtitan builds a model from a tree of configs, so a model is converted before it exists. Written against torchtitan
0.3.0, where a converter is given to the function that makes the model's specification, in a config function of yours:

    config = llama3_debugmodel()
    config.model_spec = model_registry("debugmodel", converters=[PreconditionConverter.Config(gradient="stop")])

Its flex, varlen and scaled-dot-product attention return the heads' outputs. Their rows are scaled on each process; also
under tensor and context parallelism a process has whole rows. A gain and a mark are not part of this recipe, so a
checkpoint does not say that it was trained preconditioned: keep the config beside it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention, VarlenAttention
from torchtitan.protocols.model import ModelConfigConverter

from preconditioned_attention import equilibrate


class ScaledRows:
    """What the three classes below share: the option, and `C` on what the attention returns."""

    def __init__(self, config: Any) -> None:
        """Keep the option."""
        super().__init__(config)
        self.gradient = config.gradient

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Unit rows ``(B, L, N, H)``, one for each token and head."""
        return equilibrate(super().forward(*args, **kwargs), gradient=self.gradient)


class PreconditionedFlexAttention(ScaledRows, FlexAttention):
    """torchtitan's `FlexAttention`, followed by `C`."""

    @dataclass(kw_only=True, slots=True)
    class Config(FlexAttention.Config):
        """``gradient`` as in `PreconditionConfig`."""

        gradient: str = "full"


class PreconditionedVarlenAttention(ScaledRows, VarlenAttention):
    """torchtitan's `VarlenAttention`, followed by `C`."""

    @dataclass(kw_only=True, slots=True)
    class Config(VarlenAttention.Config):
        """``gradient`` as in `PreconditionConfig`."""

        gradient: str = "full"


class PreconditionedScaledDotProductAttention(ScaledRows, ScaledDotProductAttention):
    """torchtitan's `ScaledDotProductAttention`, followed by `C`."""

    @dataclass(kw_only=True, slots=True)
    class Config(ScaledDotProductAttention.Config):
        """``gradient`` as in `PreconditionConfig`."""

        gradient: str = "full"


REPLACEMENTS = {
    FlexAttention.Config: PreconditionedFlexAttention.Config,
    VarlenAttention.Config: PreconditionedVarlenAttention.Config,
    ScaledDotProductAttention.Config: PreconditionedScaledDotProductAttention.Config,
}


class PreconditionConverter(ModelConfigConverter):
    """Replaces the config of every inner attention by that of its preconditioned subclass."""

    @dataclass(kw_only=True, slots=True)
    class Config(ModelConfigConverter.Config):
        """``gradient`` as in `PreconditionConfig`."""

        gradient: str = "full"

    def __init__(self, config: Config) -> None:
        """Keep the option."""
        self.gradient = config.gradient

    def convert(self, model_config: Any) -> Any:
        """The config, changed in place. Raises ValueError if there is no attention that is known."""
        found = list(model_config.traverse(tuple(REPLACEMENTS)))
        if not found or any(type(config) not in REPLACEMENTS for _, config, _, _ in found):
            names = sorted({type(config).__qualname__ for _, config, _, _ in found})
            raise ValueError(f"model_config must hold torchtitan's own inner attention; found {names}")
        for _, config, parent, name in found:
            options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
            new = REPLACEMENTS[type(config)](**options, gradient=self.gradient)
            if isinstance(name, int):
                parent[name] = new
            else:
                setattr(parent, name, new)
        return model_config
