"""For those who have a model: convert it in place, see what happened, and bring it back."""

from .checking import AdapterCheck, CheckedAttention, check_adapter
from .convert import is_preconditioned, precondition_, restore_, survey
from .declared import register_posthook, register_prehook
from .mechanisms import ClassSwap, Layout, PostHook, PreHook
from .model_factory import build_model, build_without_weights
from .peft_adapters import load_adapter
from .pretrained import from_pretrained
from .registry import Adapter, HeadShape, register_adapter, register_composite, unregister_adapter
from .report import ConversionEntry, ConversionReport
from .verify import Verification, VerificationError
from .weight_files import conversion_metadata, load_safetensors, save_safetensors

__all__ = [
    "Adapter",
    "AdapterCheck",
    "CheckedAttention",
    "ClassSwap",
    "ConversionEntry",
    "ConversionReport",
    "HeadShape",
    "Layout",
    "PostHook",
    "PreHook",
    "Verification",
    "VerificationError",
    "build_model",
    "build_without_weights",
    "check_adapter",
    "conversion_metadata",
    "from_pretrained",
    "is_preconditioned",
    "load_adapter",
    "load_safetensors",
    "precondition_",
    "register_adapter",
    "register_composite",
    "register_posthook",
    "register_prehook",
    "restore_",
    "save_safetensors",
    "survey",
    "unregister_adapter",
]
