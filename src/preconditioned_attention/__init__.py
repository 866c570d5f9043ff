"""Preconditioned attention: every head's output `A` becomes `C A`, `C = diag(1 / ||A_i||)`.

Source: H. Saratchandran, "Preconditioned Attention: Enhancing Efficiency in Transformers", AISTATS 2026,
arXiv 2603.27153.

Public names are imported on first use (PEP 562), so that the command line can parse its arguments without torch.
Programs of `torch.export` that contain operators of this package need `import preconditioned_attention.ops`.
"""

import importlib
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from . import conversion as conversion
    from . import diagnostics as diagnostics
    from . import lab as lab
    from . import layers
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
    from .lab.comparison import compare
    from .ops.rows.autograd import equilibrate
    from .varlen import preconditioned_varlen_attention

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

_SUBMODULES = (
    "config",
    "conversion",
    "diagnostics",
    "equilibration",
    "flex",
    "functional",
    "lab",
    "layers",
    "ops",
    "varlen",
)
_DEFINED_IN = {
    "ConditionMonitor": "diagnostics",
    "ConversionReport": "conversion",
    "PreconditionConfig": "config",
    "check_adapter": "conversion",
    "compare": "lab.comparison",
    "equilibrate": "ops.rows.autograd",
    "is_preconditioned": "conversion",
    "precondition_": "conversion",
    "preconditioned_attention": "functional",
    "preconditioned_flex_attention": "flex",
    "preconditioned_varlen_attention": "varlen",
    "register_adapter": "conversion",
    "register_posthook": "conversion",
    "register_prehook": "conversion",
    "restore_": "conversion",
}


def __getattr__(name: str) -> object:
    """Import a submodule, or the module that defines a public name, on first use."""
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_DEFINED_IN[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
