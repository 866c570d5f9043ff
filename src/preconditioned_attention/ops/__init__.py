"""How preconditioned attention is computed.

`inputs` checks a call, `dispatch` chooses the backend, `flash` has the re-normalized kernels, `rows` the row work.
"""

from .causal_bias import as_mask
from .dispatch import compute, compute_packed
from .inputs import AttentionInputs, PackedInputs, check_inputs

__all__ = ["AttentionInputs", "PackedInputs", "as_mask", "check_inputs", "compute", "compute_packed"]
