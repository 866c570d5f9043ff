"""x-transformers: `Attention`, at the output of its `Attend`.

`Attend` returns every head's rows before anything else is done with them: scales, gates, hybrid modules and orthogonal
projections come after. Its own options (talking heads, top-k, sigmoid, l2 distance, cosine similarity, ...) change the
weights, not where the rows are.
"""

from __future__ import annotations

from torch import nn

from ....layers import Preconditioner
from ...mechanisms import Layout, OutputHook, PostHook
from ...registry import HeadShape, composites_named, read_int, register_named

composites_named(
    "x_transformers.x_transformers.AttentionResidual",  # its softmax is over the layers
    "x_transformers.x_transformers.CoPE",  # positions
    "x_transformers.x_transformers.DynamicLIMe",  # its softmax is over the layers
    "x_transformers.x_transformers.TransformerWrapper",  # its softmax is over the vocabulary
)


@register_named("x_transformers.x_transformers.Attention")
class AttentionHook(PostHook):
    """Self- and cross-attention of every model in the package."""

    parts = ("attend", "attend.cope")

    def refusal(self, module: nn.Module) -> str | None:
        """Two options after which a head's rows are another thing."""
        if module.laser:
            return "with laser=True a head's output is the logarithm of what its attention returns"
        if module.hybrid_module is not None:
            return "normalised already: with a hybrid module every head's rows pass through `hybrid_norms`"
        return None

    def shape(self, module: nn.Module) -> HeadShape:
        """From the number of heads and the width of the values."""
        values, groups = read_int(module.to_v, "out_features"), read_int(module, "kv_heads")
        return HeadShape(read_int(module, "heads"), values // groups if values and groups else None)

    def layout(self, module: nn.Module) -> Layout:
        """Not merged yet: ``(B, H, N, d)``."""
        head_dim = self.shape(module).head_dim
        assert head_dim is not None, "the values of x-transformers come from a linear layer"
        return Layout(head_dim, form="split")

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook `attend`."""
        module.get_submodule("attend").register_forward_hook(OutputHook(preconditioner, self.layout(module)))

    def detach(self, module: nn.Module) -> None:
        """Find the hook by its type and remove it."""
        super().detach(module.get_submodule("attend"))
