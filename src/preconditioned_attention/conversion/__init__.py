"""For those who have a model: convert it in place, see what happened, and bring it back."""

from .convert import is_preconditioned, precondition_, restore_
from .registry import Adapter, HeadShape, register_adapter
from .report import ConversionEntry, ConversionReport

__all__ = [
    "Adapter",
    "ConversionEntry",
    "ConversionReport",
    "HeadShape",
    "is_preconditioned",
    "precondition_",
    "register_adapter",
    "restore_",
]
