"""transformers: what is called attention, or looks like it, and has no rows of heads that C could scale."""

from __future__ import annotations

from ...registry import Refused, composites_named, register_named
from .tables import named


@register_named(*named("mobilevitv2.MobileViTV2LinearSelfAttention swiftformer.SwiftFormerEfficientAdditiveAttention"))
class NoRows(Refused):
    """Separable linear and additive attention."""

    reason = "one context vector for all tokens: there is no row per token and head to equilibrate"


@register_named(*named("big_bird.BigBirdBlockSparseAttention bigbird_pegasus.BigBirdPegasusBlockSparseAttention"))
class BlockSparseAlone(Refused):
    """Asked for only where it is not a part of what holds it."""

    reason = "it computes for an attention that is converted as a whole; this one is held by something else"


@register_named(*named("slanet.SLANetAttentionGRUCell slanext.SLANeXtAttentionGRUCell"))
class AdditiveCell(Refused):
    """A recurrent cell that looks at an image."""

    reason = "additive attention inside a recurrent cell: no heads, and what is mixed are the cell's inputs themselves"


@register_named(*named("yoso.YosoSelfAttention"))
class NormalisesItself(Refused):
    """YOSO."""

    reason = "normalised already: it scales every head's row to length one, before its convolution is added"


@register_named(
    *named(
        """
        bailing_hybrid.BailingHybridDeltaAttention glm5_next.Glm5NextTextLinearAttention
        kimi_linear.KimiLinearDeltaAttention
        """
    )
)
class NormalisedRecurrence(Refused):
    """The gated delta rule, and a norm."""

    kind = "linear"
    reason = "normalised already: a recurrence whose every row of every head is RMS-normalised at once, which undoes C"


@register_named(*named("mgp_str.MgpstrA3Module"))
class NormalisedPooling(Refused):
    """MGP-STR's pooling of an image's tokens into those of a text."""

    kind = "pooling"
    reason = "normalised already: no heads, and a layer norm of every row follows at once, which undoes C"


@register_named(*named("rwkv.RwkvSelfAttention"))
class PerChannel(Refused):
    """RWKV."""

    kind = "linear"
    reason = "every channel has weights of its own: rows of one entry; equilibrated, only their sign is left"


@register_named(
    *named(
        """
        inkling2.Inkling2BlockAttentionResidual inkling2_loop.Inkling2LoopBlockAttentionResidual
        inkling2_loop.Inkling2LoopMessageAttentionResidual
        """
    )
)
class OverDepth(Refused):
    """Attention of a token over the states that earlier blocks left of it."""

    reason = "it mixes a token's own earlier states into the residual stream: what leaves it is no head's row"


# They hold an attention.
composites_named(*named("aria.AriaCrossAttention"))


@register_named(*named("qwen2_5_omni.AttentiveStatisticsPooling"))
class ChannelWiseStatistics(Refused):
    """Weights over time for every channel."""

    kind = "pooling"
    reason = "every channel has weights of its own: rows of one entry; equilibrated, only their sign is left"


@register_named(*named("granite_docling.GraniteDoclingDensityRouter"))
class AveragedPooling(Refused):
    """Pools every tile of a page."""

    kind = "pooling"
    reason = "the pooled rows of a sample's tiles are averaged before any module sees them"


@register_named(*named("xlstm.xLSTMBackend"))
class MatrixMemory(Refused):
    """The mLSTM cell, whose gates are exponentials over their sum."""

    kind = "linear"
    reason = "normalised already: a gated recurrent memory, whose every head xLSTM normalises at once, which undoes C"


# Softmax and products for something else: scores or weights without values; scores of a search, a match or a loss;
# mixtures of layers, experts, embeddings or bins; and models that do one of these beside the attention that they hold.
composites_named(
    *named(
        """
        chmv2.CHMv2FeaturesToDepth conditional_detr.ConditionalDetrMHAttentionMap dab_detr.DabDetrMHAttentionMap
        detr.DetrMHAttentionMap diffusion_gemma.DiffusionGemmaDecoderModel doge.DogeCDMoE
        efficientloftr.EfficientLoFTRForKeypointMatching eomt.EomtHungarianMatcher
        eomt_dinov3.EomtDinov3HungarianMatcher esm.esmfold.EsmForProteinFolding
        esmfold2.EsmFold2ConfidenceHead esmfold2.EsmFold2LanguageModelEncoder flaubert.FlaubertSQuADHead
        glm5_next.Glm5NextTextIndexer lightglue.LightGlueMatchAssignmentLayer mask2former.Mask2FormerHungarianMatcher
        maskformer.MaskFormerDetrMHAttentionMap maskformer.MaskFormerHungarianMatcher
        oneformer.OneFormerHungarianMatcher tapas.TapasForQuestionAnswering videomt.VideomtHungarianMatcher
        videoprism.VideoPrismClipModel visual_bert.VisualBertRegionToPhraseAttention xlm.XLMSQuADHead
        xlnet.XLNetForQuestionAnswering
        """
    )
)
