"""Packed sequences one after the other, each as a dense call of its own: serves what no packed kernel does."""

from __future__ import annotations

from torch import Tensor

from ..config import Backend
from .api import attend as attend_dense
from .varlen_call import Packed, one_by_one


def attend(packed: Packed, backend: Backend) -> Tensor:
    """`C A` within each sequence, by ``backend``.

    Raises:
        ValueError: ``backend`` cannot serve one of the sequences, or the boundaries do not fit.
    """
    return one_by_one(packed, lambda call: attend_dense(call, backend))
