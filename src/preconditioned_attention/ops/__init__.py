"""How preconditioned attention is computed: `api` chooses, one file per backend computes."""

from .api import attend

__all__ = ["attend"]
