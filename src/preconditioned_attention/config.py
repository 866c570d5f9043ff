"""`PreconditionConfig`: the options of the method. Imports no other module of this package."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Gradient = Literal["full", "stop"]
Placement = Literal["pre_skip", "post_skip"]
BackendName = Literal["auto", "flash", "efficient", "cudnn", "composition", "reference"]

GRADIENTS: tuple[str, ...] = get_args(Gradient)
PLACEMENTS: tuple[str, ...] = get_args(Placement)
BACKENDS: tuple[str, ...] = get_args(BackendName)
ROW_BACKENDS = ("auto", "composition")
"""The backends that can scale rows of `A` which a model has computed itself: the others compute attention too."""

FORMER_FIELDS = {"class_attention": False, "pooling": False, "channel": True, "linear": False}
"""Fields of saved configs that selected attention, with their defaults; now `include` of `precondition_`."""


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` naming the argument, the choices and what came, unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {expected}; got {value!r}")


def check_eps(eps: object) -> None:
    """Raise unless ``eps`` is None or a finite number that is not negative."""
    if eps is None:
        return
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise TypeError(f"eps must be a float or None (None: 2**-14 in float16, 1e-12 otherwise); got {eps!r}")
    if not 0 <= eps < math.inf:  # not math.isfinite: torch 2.11 cannot trace it
        raise ValueError(f"eps must be finite and at least 0; got {eps!r}")


@dataclass(frozen=True, kw_only=True)
class PreconditionConfig:
    """How attention is preconditioned: `A = Attn(q, k, v)` becomes `C A` with `C = diag(1 / ||A_i||_2)` per head.

    Args:
        gradient: ``"full"`` differentiates through `C` (the derivative of what is computed); ``"stop"`` treats
            `C` as a constant in the backward pass (the setting that the paper is reported to use). The forward
            pass is the same.
        gain: None is the paper's method. A number gives every converted attention one learnable gain per head
            that starts there, `C_ii = g_h / ||A_i||`; an option of this project, not of the paper.
        eps: rows with `||A_i|| <= eps` are left as they are (`C_ii = 1`). None: 2**-14 in float16, 1e-12 otherwise.
        placement: for attention that adds a skip to its output (Nystromformer's convolution of the values):
            ``"pre_skip"`` equilibrates before the skip is added, ``"post_skip"`` after. Attention without such a
            skip has one place only, and a conversion that finds no skip refuses ``"post_skip"``.
        backend: how the function computes; see :func:`preconditioned_attention.preconditioned_attention`. Attention
            that computes its own rows, which are then scaled, takes ``"auto"`` and ``"composition"`` alone.

    Raises:
        ValueError, TypeError: an option has a value it cannot have; the message names it.
    """

    gradient: Gradient = "full"
    gain: float | None = None
    eps: float | None = None
    placement: Placement = "pre_skip"
    backend: BackendName = "auto"

    def __post_init__(self) -> None:
        check_choice("gradient", self.gradient, GRADIENTS)
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("backend", self.backend, BACKENDS)
        check_eps(self.eps)
        if self.gain is not None and (isinstance(self.gain, bool) or not isinstance(self.gain, int | float)):
            raise TypeError(f"gain must be a float (where every head's gain starts) or None; got {self.gain!r}")
        if self.gain is not None and not math.isfinite(self.gain):
            raise ValueError(f"gain must be finite; got {self.gain!r}")

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, ready for JSON or YAML."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> PreconditionConfig:
        """The inverse of :meth:`to_dict`; options left out keep their defaults, unknown ones are an error.

        Options that were saved while a config had the fields of :data:`FORMER_FIELDS` are read without those, with a
        warning if they select other attention than `precondition_` does by default.
        """
        former = {name: options.get(name, default) for name, default in FORMER_FIELDS.items()}
        if former != FORMER_FIELDS:
            include = ("softmax", *(name for name, is_chosen in former.items() if is_chosen))
            warnings.warn(
                f"these options also say which attention is converted, which is an argument of precondition_ now: "
                f"pass include={include!r}",
                stacklevel=2,
            )
        options = {name: value for name, value in options.items() if name not in FORMER_FIELDS}
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"unknown option(s) {', '.join(map(repr, unknown))}; the options are {', '.join(known)}")
        return cls(**options)
