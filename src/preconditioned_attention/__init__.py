"""Preconditioned attention: every head's output `A` becomes `C A`, `C = diag(1 / ||A_i||)`.

Source: H. Saratchandran, "Preconditioned Attention: Enhancing Efficiency in Transformers", AISTATS 2026,
arXiv 2603.27153.
"""

from typing import TYPE_CHECKING

from . import layers
from ._version import __version__
from .config import PreconditionConfig
from .conversion import (
    ConversionReport,
    check_adapter,
    is_preconditioned,
    precondition_,
    register_adapter,
    register_posthook,
    register_prehook,
    restore_,
)
from .diagnostics import ConditionMonitor
from .flex import preconditioned_flex_attention
from .functional import preconditioned_attention
from .ops.equilibrated import equilibrate
from .varlen import preconditioned_varlen_attention

if TYPE_CHECKING:
    from .lab.comparison import compare

__all__ = [
    "ConditionMonitor",
    "ConversionReport",
    "PreconditionConfig",
    "__version__",
    "check_adapter",
    "compare",
    "equilibrate",
    "is_preconditioned",
    "layers",
    "precondition_",
    "preconditioned_attention",
    "preconditioned_flex_attention",
    "preconditioned_varlen_attention",
    "register_adapter",
    "register_posthook",
    "register_prehook",
    "restore_",
]


def __getattr__(name: str) -> object:
    """Import public names of the lab on first use, so that importing the library does not load it."""
    if name == "compare":
        from .lab.comparison import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
