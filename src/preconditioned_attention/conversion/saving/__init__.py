"""Saving a conversion and loading it again: transformers' folders, safetensors files, PEFT's adapters."""
