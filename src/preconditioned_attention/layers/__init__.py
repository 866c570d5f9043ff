"""Modules for those who build models."""

from .preconditioner import Preconditioner

__all__ = ["Preconditioner"]
