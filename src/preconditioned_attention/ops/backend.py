"""The interface of a backend: one way to compute preconditioned attention."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .inputs import AttentionInputs, PackedInputs


class Backend(Protocol):
    """Computes `C Attn(q, k, v)` for the inputs that it supports."""

    def unsupported_reason(self, inputs: AttentionInputs) -> str | None:
        """Why this backend cannot compute with ``inputs``; None if it can."""

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """`C Attn(q, k, v)`, for inputs for which :meth:`unsupported_reason` is None."""


class PackedBackend(Protocol):
    """The same within each of several sequences that are packed into one tensor."""

    def unsupported_reason(self, packed: PackedInputs) -> str | None:
        """Why this backend cannot compute with ``packed``; None if it can."""

    def attend(self, packed: PackedInputs) -> Tensor:
        """`C Attn(q, k, v)` of each sequence, for inputs for which :meth:`unsupported_reason` is None."""

    def attend_plain(self, packed: PackedInputs) -> Tensor:
        """`Attn(q, k, v)` of each sequence, without `C`, for the same inputs."""
