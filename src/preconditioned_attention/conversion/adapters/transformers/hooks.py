"""transformers: attention classes beside `tables`, which show their heads in a form of their own.

Two streams at once, convolution heads beside attention heads, images, named tuples, or a child that returns them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ....layers import Preconditioner
from ...mechanisms import Layout, OutputHook, PostHook, PreHook
from ...normalised import normalised_already
from ...registry import HeadShape, read_int, register_named
from .tables import named, own_shape


class _OwnShape:
    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return own_shape(module)


class StreamsHook(OutputHook):
    """A forward hook for a module that returns two streams' merged heads first; the second may be None."""

    def __init__(self, preconditioner: Preconditioner, first: Layout, second: Layout) -> None:
        super().__init__(preconditioner, first)
        self.second = second

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        """Precondition what comes out."""
        first, second, *rest = output
        if second is not None:
            second = self.second.apply(self.preconditioner, second)
        return self.layout.apply(self.preconditioner, first), second, *rest


class FieldHook(OutputHook):
    """A forward hook for a module that returns a named tuple with the merged heads as its `hidden_states`."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Precondition what comes out."""
        return output._replace(hidden_states=self.layout.apply(self.preconditioner, output.hidden_states))


@register_named(*named("luke.LukeSelfAttention"))
class WordsAndEntities(_OwnShape, PostHook):
    """LUKE: one attention over words and entities, whose rows come out in two parts."""

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the module."""
        layout = self.layout(module)
        module.register_forward_hook(StreamsHook(preconditioner, layout, layout))


@register_named(*named("lilt.LiltSelfAttention"))
class TextAndLayout(_OwnShape, PostHook):
    """LiLT: two attentions that share their scores, one of text and a narrower one of its layout."""

    definition = "the heads' outputs of text and of layout, each with its own norm; they share a gain"

    def refusal(self, module: nn.Module) -> str | None:
        """A layout too narrow for a norm."""
        if _layout_head_dim(module) > 1:
            return None
        return "rows of one entry in the layout's stream: equilibrated, only their sign is left"

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the module."""
        module.register_forward_hook(StreamsHook(preconditioner, self.layout(module), Layout(_layout_head_dim(module))))


def _layout_head_dim(module: nn.Module) -> int:
    head_dim, ratio = read_int(module, "attention_head_size"), read_int(module, "channel_shrink_ratio")
    assert head_dim is not None
    assert ratio is not None
    return head_dim // ratio


@register_named(*named("convbert.ConvBertSelfAttention"))
class BesideConvolutions(_OwnShape, PostHook):
    """ConvBERT: heads of a dynamic convolution follow those of attention."""

    def layout(self, module: nn.Module) -> Layout:
        """The first half of what comes out."""
        shape = self.shape(module)
        assert shape.head_dim is not None
        assert shape.num_heads is not None
        return Layout(shape.head_dim, width=shape.num_heads * shape.head_dim)


@register_named(*named("gemma3n.Gemma3nAudioAttention"))
class ReturnedTokens(_OwnShape, PostHook):
    """Heads that come out unmerged, tokens first."""

    def layout(self, module: nn.Module) -> Layout:
        """``(B, N, H, d)``."""
        shape = self.shape(module)
        assert shape.head_dim is not None
        return Layout(shape.head_dim, "tokens")


@register_named(*named("reformer.LSHSelfAttention reformer.LocalSelfAttention"))
class ReturnedInANamedTuple(_OwnShape, PostHook):
    """Reformer. Rounds of hashing are merged by their normalisers before the heads leave, so C comes after that."""

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the module."""
        module.register_forward_hook(FieldHook(preconditioner, self.layout(module)))


@register_named(*named("squeezebert.SqueezeBertSelfAttention"))
class ReturnedByAChild(_OwnShape, PostHook):
    """SqueezeBERT: the product of weights and values is a module, whose output is merged in an order of its own."""

    parts = ("matmul_qkv",)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the product."""
        head_dim = self.shape(module).head_dim
        assert head_dim is not None
        hook = OutputHook(preconditioner, Layout(head_dim, "split"))
        module.get_submodule("matmul_qkv").register_forward_hook(hook)

    def detach(self, module: nn.Module) -> None:
        """Find the hook by its type and remove it."""
        super().detach(module.get_submodule("matmul_qkv"))


@register_named(*named("ibert.IBertSelfAttention"))
class BeforeRequantisation(_OwnShape, PreHook):
    """I-BERT, as long as it computes in floating point."""

    point = "output_activation"

    def refusal(self, module: nn.Module) -> str | None:
        """Integer arithmetic, whose scaling factors C would have to change."""
        if not getattr(module, "quant_mode", False):
            return None
        return "quant_mode=True: integers with scaling factors, which belong to the rows as they are"


@register_named(*named("big_bird.BigBirdAttention bigbird_pegasus.BigBirdPegasusEncoderAttention"))
class Replaceable(_OwnShape, PreHook):
    """BigBird: the model puts a full attention in the block-sparse one's place when a sequence is too short for it.

    So the hook is on what both of them hand their heads to.
    """

    point = "output"
    parts = ("self",)


@register_named(
    *named(
        """
        apertus1p5.Apertus1p5VisionTokenizerAttnBlock chameleon.ChameleonVQVAEEncoderAttnBlock
        groupvit.GroupViTAssignAttention janus.JanusVQVAEAttnBlock wavtokenizer.WavTokenizerVocosAttention
        """
    )
)
class SingleHead(PreHook):
    """One head as wide as the projection's input; a convolution's input is an image, or a series."""

    def points(self, module: nn.Module) -> tuple[str, ...]:
        """The projection."""
        return ("proj_out",) if isinstance(getattr(module, "proj_out", None), nn.Conv1d | nn.Conv2d) else ("proj",)

    def shape(self, module: nn.Module) -> HeadShape:
        """From the projection."""
        return HeadShape(1, read_int(module.get_submodule(self.points(module)[0]), "in_channels", "in_features"))

    def layout(self, module: nn.Module) -> Layout:
        """Channels before the tokens in images."""
        shape = self.shape(module)
        assert shape.head_dim is not None
        return Layout(shape.head_dim, "channels" if self.points(module) == ("proj_out",) else "merged")


@register_named(*named("aimv2.Aimv2AttentionPoolingHead"))
class PoolingHead(_OwnShape, PreHook):
    """One query for an image."""

    kind = "pooling"
    point = "output_proj"


@register_named(*named("esmfold2.EsmFold2RowAttentionPooling"))
class PairPooling(PreHook):
    """Every token's row of the pair representation, pooled by one head."""

    kind = "pooling"
    point = "out_proj"

    def shape(self, module: nn.Module) -> HeadShape:
        """From the projection."""
        return HeadShape(1, read_int(module.get_submodule(self.point), "in_features"))


@register_named(*named("esm.esmfold.EsmFoldInvariantPointAttention"))
class InvariantPoints(PreHook):
    """Invariant point attention: a head's weights also mix points in space and features of pairs."""

    point = "linear_out"
    definition = "the scalar values that a head mixes; the points and the pair features that it mixes stay as they are"

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "hidden_dim"))

    def layout(self, module: nn.Module) -> Layout:
        """The scalars come first."""
        shape = self.shape(module)
        assert shape.head_dim is not None
        assert shape.num_heads is not None
        return Layout(shape.head_dim, width=shape.num_heads * shape.head_dim)


@register_named(*named("minimax.MiniMaxLightningAttention"))
class DecayingLinear(_OwnShape, PreHook):
    """Lightning attention: linear attention with a decay per head."""

    kind = "linear"
    point = "norm"
    definition = (
        "the sum of the values, weighted by decaying products of query and keys, before the norm over all heads"
    )

    def refusal(self, module: nn.Module) -> str | None:
        """One head."""
        return normalised_already(module.norm, self.shape(module))


class _Defined(_OwnShape, PreHook):
    point = "out_proj"
    definition: str


@register_named(*named("autoformer.AutoformerAttention"))
class Autocorrelation(_Defined):
    """Autoformer: whole series are attended to, one for each delay."""

    definition = "the sum of the delayed values, weighted by a softmax over the delays"


@register_named(*named("informer.InformerProbSparseAttention"))
class ProbSparse(_Defined):
    """Informer: softmax attention for the queries that it selects."""

    definition = (
        "what the selected queries attend to; for the others, the mean of all values (in a decoder: the sum up to them)"
    )


@register_named(*named("mra.MraSelfAttention"))
class MultiResolution(_OwnShape, PostHook):
    """MRA: the product of an approximated softmax matrix and the values."""

    definition = "what the approximation of the softmax matrix gives"


@register_named(*named("d_fine.DFineMultiscaleDeformableAttention deimv2.Deimv2MultiscaleDeformableAttention"))
class ReturnedDeformable(_OwnShape, PostHook):
    """Deformable attention without a projection."""

    definition = "the sum of the values sampled for a query, weighted by a softmax"
