"""x-transformers: where the heads' outputs of `Attention` are.

Its `Attend` returns every head's rows before anything else is done with them: scales, gates, hybrid modules and
orthogonal projections come after. Talking heads, top-k, sigmoid, l2 distance and cosine similarity change the weights,
not where the rows are.
"""

from __future__ import annotations

from torch import nn

from ...adapter import HeadShape, read_int
from ...registry import composites_named
from ..table_hooks import HookRow, register_table


def _heads(module: nn.Module) -> HeadShape:
    """From the number of heads and the width of the values."""
    values, groups = read_int(module.to_v, "out_features"), read_int(module, "kv_heads")
    return HeadShape(read_int(module, "heads"), values // groups if values and groups else None)


def _changes_rows(module: nn.Module) -> str | None:
    if module.laser:
        return "with laser=True a head's output is the logarithm of what its attention returns"
    if module.hybrid_module is not None:
        return "normalized already: with a hybrid module every head's rows pass through `hybrid_norms`"
    return None


HOOKS = {
    "x_transformers.x_transformers.Attention": HookRow(
        heads=_heads,
        form="split",
        output_of="attend",
        parts=("attend", "attend.cope"),
        unsupported_if=_changes_rows,
    ),
}
COMPOSITES = (
    "x_transformers.x_transformers.AttentionResidual",  # its softmax is over the layers
    "x_transformers.x_transformers.CoPE",  # positions
    "x_transformers.x_transformers.DynamicLIMe",  # its softmax is over the layers
    "x_transformers.x_transformers.TransformerWrapper",  # its softmax is over the vocabulary
)

register_table(HOOKS)
composites_named(*COMPOSITES)
