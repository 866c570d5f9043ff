"""How preconditioned attention is computed.

`containers` is where a call comes in, `api` chooses a backend, one file per backend computes; `varlen` chooses for
packed sequences.
"""

from .call import Call, attended_dtype
from .causal_bias import as_mask
from .containers import attend
from .varlen import attend_packed
from .varlen_call import Packed

__all__ = ["Call", "Packed", "as_mask", "attend", "attend_packed", "attended_dtype"]
