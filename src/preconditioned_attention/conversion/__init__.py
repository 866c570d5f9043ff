"""Converting models in place: plan, conversion, report, check and saving."""

from .adapter import Adapter, HeadShape
from .attachment import is_preconditioned
from .checking.adapter_check import AdapterCheck, CheckedAttention, check_adapter
from .convert import precondition_, restore_
from .declared import register_posthook, register_prehook
from .entry import ConversionEntry
from .layout import Layout
from .mechanisms import ClassSwap, PostHook, PreHook
from .model_factory import build_model, build_without_weights
from .plan import plan_conversion
from .registry import register_adapter, register_composite, unregister_adapter
from .report import ConversionReport
from .saving.peft_adapters import load_adapter
from .saving.pretrained import from_pretrained
from .saving.safetensors_files import conversion_metadata, load_safetensors, save_safetensors
from .sharding import shard_gains_
from .verify import Verification, VerificationError

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
    "plan_conversion",
    "precondition_",
    "register_adapter",
    "register_composite",
    "register_posthook",
    "register_prehook",
    "restore_",
    "save_safetensors",
    "shard_gains_",
    "unregister_adapter",
]
