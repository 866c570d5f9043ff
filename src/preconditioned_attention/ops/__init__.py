"""How preconditioned attention is computed: `api` chooses, one file per backend computes."""

from .api import attend
from .call import Call

__all__ = ["Call", "attend"]
