"""transformers: attention classes that cannot be converted."""

from __future__ import annotations

from ...unsupported import UnsupportedClass
from .class_names import qualified

_ONE_CONTEXT_VECTOR = UnsupportedClass(
    "one context vector for all tokens: there is no row per token and head to equilibrate"
)
_PART_OF_ANOTHER = UnsupportedClass(
    "it is a part of an attention that is converted as a whole, and is used outside of it here"
)
_RECURRENT_CELL = UnsupportedClass(
    "additive attention inside a recurrent cell: no heads, and what is mixed are the cell's inputs themselves"
)
_NORMALIZED_RECURRENCE = UnsupportedClass(
    "normalized already: a recurrence whose every row of every head is RMS-normalized at once, which undoes C", "linear"
)
_OVER_DEPTH = UnsupportedClass(
    "it mixes earlier states of the same token into the residual stream: what it returns is no head's row"
)
_ONE_ENTRY = "every channel has separate weights: rows of one entry; equilibrated, only their sign is left"

UNSUPPORTED = {
    qualified(short): entry
    for short, entry in {
        "bailing_hybrid.BailingHybridDeltaAttention": _NORMALIZED_RECURRENCE,
        # The two of BigBird are looked up only where they are not a part of the attention that holds them.
        "big_bird.BigBirdBlockSparseAttention": _PART_OF_ANOTHER,
        "bigbird_pegasus.BigBirdPegasusBlockSparseAttention": _PART_OF_ANOTHER,
        "diffllama.DiffLlamaAttention": UnsupportedClass(
            "normalized already: differential attention subtracts two attention outputs and normalizes the difference "
            "of every head",
            "softmax",
        ),
        "florence2.Florence2VisionChannelAttention": UnsupportedClass(
            "channel attention whose rows are channels, not tokens", "softmax"
        ),
        "glm5_next.Glm5NextTextLinearAttention": _NORMALIZED_RECURRENCE,
        "granite_docling.GraniteDoclingDensityRouter": UnsupportedClass(
            "the pooled rows of a sample's tiles are averaged before any module is called with them", "pooling"
        ),
        "inkling2.Inkling2BlockAttentionResidual": _OVER_DEPTH,
        "inkling2_loop.Inkling2LoopBlockAttentionResidual": _OVER_DEPTH,
        "inkling2_loop.Inkling2LoopMessageAttentionResidual": _OVER_DEPTH,
        "kimi_linear.KimiLinearDeltaAttention": _NORMALIZED_RECURRENCE,
        "mgp_str.MgpstrA3Module": UnsupportedClass(
            "normalized already: no heads, and a layer norm of every row follows at once, which undoes C", "pooling"
        ),
        "mobilevitv2.MobileViTV2LinearSelfAttention": _ONE_CONTEXT_VECTOR,
        "muse_spark.MuseSparkTextAttention": UnsupportedClass(
            "normalized already: an RMS norm of every head's row (`o_norm`) follows at once, which undoes C", "softmax"
        ),
        "qwen2_5_omni.AttentiveStatisticsPooling": UnsupportedClass(_ONE_ENTRY, "pooling"),
        "rwkv.RwkvSelfAttention": UnsupportedClass(_ONE_ENTRY, "linear"),
        "slanet.SLANetAttentionGRUCell": _RECURRENT_CELL,
        "slanext.SLANeXtAttentionGRUCell": _RECURRENT_CELL,
        "swiftformer.SwiftFormerEfficientAdditiveAttention": _ONE_CONTEXT_VECTOR,
        "xlstm.xLSTMBackend": UnsupportedClass(
            "normalized already: a gated recurrent memory, whose every head xLSTM normalizes at once, which undoes C",
            "linear",
        ),
        "yoso.YosoSelfAttention": UnsupportedClass(
            "normalized already: it scales every head's row to length one, before its convolution is added"
        ),
    }.items()
}
