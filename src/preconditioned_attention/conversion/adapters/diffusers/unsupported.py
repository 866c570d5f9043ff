"""diffusers: attention classes, and processors, with which attention cannot be converted."""

from __future__ import annotations

from ...unsupported import UnsupportedClass

_MODELS = "diffusers.models."
_SHARED = _MODELS + "attention_processor."
_AUTOENCODERS = _MODELS + "autoencoders.autoencoder_"
_TRANSFORMERS = _MODELS + "transformers.transformer_"

_GATE = "a gate multiplies the entries of the heads' outputs before a module is called with them"
_LINEAR = "linear attention; of diffusers' attention only softmax attention is converted"
_OWN_PROJECTIONS = "it has output projections of its own"
_PERTURBED = "perturbed-attention guidance puts perturbed attention, or none, through the same projections"
_SUM = "it sums two attentions before a module is called with them"

_DELTA_RULE = "a gated delta rule: a recurrent state, and no attention weights times values"
_NO_WIDTH = "only its input tells how wide a head is, and the block mixes what it returns with a camera branch"

UNSUPPORTED = {
    _SHARED + "SanaMultiscaleLinearAttention": UnsupportedClass(
        "linear attention of several scales, which on small maps computes another, quadratic form"
    ),
    _AUTOENCODERS + "kl_minimax_h3_audio.MiniMaxH3AudioCausalAttention": UnsupportedClass(
        "the heads' outputs are averaged before any module is called with them"
    ),
    _AUTOENCODERS + "rfd4_proteina.RFD4ProteinaPairAttention": UnsupportedClass(_GATE),
    _MODELS + "embeddings.HunyuanDiTAttentionPool": UnsupportedClass(
        "no module is called with the heads' outputs: F.multi_head_attention_forward takes the projection's weights"
    ),
    _TRANSFORMERS + "cosmos.CosmosAttention": UnsupportedClass(
        "it may sum two attentions, to the text and to an image, before a module is called with them"
    ),
    _TRANSFORMERS + "krea2.Krea2Attention": UnsupportedClass(_GATE),
    _TRANSFORMERS + "rfd4_proteina.RFD4ProteinaPairAttention": UnsupportedClass(_GATE),
    _TRANSFORMERS + "sana_wm.SanaWMBidirectionalGDNAttention": UnsupportedClass(_DELTA_RULE),
    _TRANSFORMERS + "sana_wm.SanaWMBidirectionalGDNCamAttention": UnsupportedClass(_DELTA_RULE),
    _TRANSFORMERS + "sana_wm.SanaWMSoftmaxAttention": UnsupportedClass(_NO_WIDTH),
    _TRANSFORMERS + "sana_wm.SanaWMSoftmaxCamAttention": UnsupportedClass(_NO_WIDTH),
}

UNSUPPORTED_PROCESSORS = {
    _SHARED + "CustomDiffusionAttnProcessor": _OWN_PROJECTIONS,
    _SHARED + "CustomDiffusionAttnProcessor2_0": _OWN_PROJECTIONS,
    _SHARED + "CustomDiffusionXFormersAttnProcessor": _OWN_PROJECTIONS,
    _SHARED + "IPAdapterAttnProcessor": _SUM,
    _SHARED + "IPAdapterAttnProcessor2_0": _SUM,
    _SHARED + "IPAdapterXFormersAttnProcessor": _SUM,
    _SHARED + "LuminaAttnProcessor2_0": "it returns the heads' outputs, which the block adds to another attention's",
    _SHARED + "PAGCFGHunyuanAttnProcessor2_0": _PERTURBED,
    _SHARED + "PAGCFGIdentitySelfAttnProcessor2_0": _PERTURBED,
    _SHARED + "PAGCFGJointAttnProcessor2_0": _PERTURBED,
    _SHARED + "PAGCFGSanaLinearAttnProcessor2_0": _PERTURBED,
    _SHARED + "PAGHunyuanAttnProcessor2_0": _PERTURBED,
    _SHARED + "PAGIdentitySanaLinearAttnProcessor2_0": _PERTURBED,
    _SHARED + "PAGIdentitySelfAttnProcessor2_0": _PERTURBED,
    _SHARED + "PAGJointAttnProcessor2_0": _PERTURBED,
    _SHARED + "SD3IPAdapterJointAttnProcessor2_0": _SUM,
    _SHARED + "SanaLinearAttnProcessor2_0": _LINEAR,
    _SHARED + "SanaMultiscaleAttnProcessor2_0": _LINEAR,
    _AUTOENCODERS + "kl_minimax_h3_audio.MiniMaxH3AudioAttnProcessor": (
        "it averages the heads' outputs before any module is called with them"
    ),
    _AUTOENCODERS + "rfd4_proteina.RFD4ProteinaPairAttnProcessor": _GATE,
    _TRANSFORMERS + "cosmos.CosmosAttnProcessor2_5": "it may sum two attentions, to the text and to an image",
    _TRANSFORMERS + "flux.FluxIPAdapterAttnProcessor": (
        "it attends once more to an image prompt, and returns that beside the rest"
    ),
    _TRANSFORMERS + "krea2.Krea2AttnProcessor": _GATE,
    _TRANSFORMERS + "ltx2.LTX2PerturbedAttnProcessor": _PERTURBED,
    _TRANSFORMERS + "rfd4_proteina.RFD4ProteinaPairAttnProcessor": _GATE,
    _TRANSFORMERS + "sana_video.SanaLinearAttnProcessor3_0": _LINEAR,
    _TRANSFORMERS + "sana_wm_refiner.SanaWMLTX2PerturbedAttnProcessor": _PERTURBED,
    _TRANSFORMERS + "wan_animate_2.WanAnimate2AttnProcessor": (
        "after the valid tokens the projection is called with queries, not heads"
    ),
}
