"""Qualified names of transformers' classes from short ones."""

from __future__ import annotations


def qualified(short: str) -> str:
    """The qualified name of ``"wavlm.WavLMAttention"``; where the file is named otherwise, ``"folder.file.Class"``."""
    *folders, cls = short.split(".")
    return f"transformers.models.{folders[0]}.modeling_{folders[-1]}.{cls}"
