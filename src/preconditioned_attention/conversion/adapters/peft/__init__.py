"""PEFT: what is written beside its adapters."""
