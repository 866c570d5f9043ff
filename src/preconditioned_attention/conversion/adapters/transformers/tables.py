"""transformers: where the heads' outputs are in the attention classes that do not use `ALL_ATTENTION_FUNCTIONS`.

A class returns them, merged and alone or first in a tuple, or calls a child, the hook target, with them; gates, norms
and projections come after that. Classes that no hook reaches are in the files of swaps.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..table_hooks import HookRow
from .class_names import qualified
from .head_shapes import heads_of


def _before(*hook_targets: str, **options: Any) -> HookRow:
    """Several hook targets where several streams leave one attention."""
    return HookRow(hook_targets=hook_targets, heads=heads_of, **options)


def _width_of_all_heads(module: nn.Module) -> int:
    shape = heads_of(module)
    return (shape.num_heads or 0) * (shape.head_dim or 0)


def _width_of_scalars(module: Any) -> int:
    width: int = module.num_heads * module.hidden_dim
    return width


def _single_head_projection(module: nn.Module) -> tuple[str, ...]:
    return ("proj_out",) if isinstance(getattr(module, "proj_out", None), nn.Conv1d | nn.Conv2d) else ("proj",)


def _reads_the_weight(module: nn.Module) -> str | None:
    """Bloom's emulation of tensor parallelism reads the projection's weight and does not call it."""
    if getattr(module, "slow_but_exact", False) and getattr(module, "pretraining_tp", 1) > 1:
        return "pretraining_tp > 1 with slow_but_exact=True goes around `dense`; set slow_but_exact to False"
    return None


def _quantized(module: nn.Module) -> str | None:
    """C would have to change the scaling factors of I-BERT's integer arithmetic."""
    if not getattr(module, "quant_mode", False):
        return None
    return "quant_mode=True: integers with scaling factors, which belong to the rows as they are"


_SAMPLED = "the sum of the values sampled for a query, weighted by a softmax"
_DELAYS = "the sum of the delayed values, weighted by a softmax over the delays"
_SELECTED_QUERIES = (
    "what the selected queries attend to; for the others, the mean of all values (in a decoder: the sum up to them)"
)
_SCALARS = "the scalar values that a head mixes; the points and the pair features that it mixes stay as they are"
_LIGHTNING = "the sum of the values, weighted by decaying products of query and keys, before the norm over all heads"
_RETURNED = HookRow(heads=heads_of)
_DEFORMABLE = _before("output_proj", definition=_SAMPLED)
_DEFORMABLE_RETURNED = HookRow(heads=heads_of, definition=_SAMPLED)
# The model replaces the block-sparse `self` by full attention when a sequence is too short; `output` is called by both.
_BIG_BIRD = _before("output", parts=("self",))

HOOKS = {
    qualified(short): row
    for short, row in {
        "aimv2.Aimv2AttentionPoolingHead": _before("output_proj", kind="pooling"),
        "autoformer.AutoformerAttention": _before("out_proj", definition=_DELAYS),
        "bark.BarkSelfAttention": _before("out_proj"),
        "bark.BarkSelfFlashAttention2": _before("out_proj"),
        "big_bird.BigBirdAttention": _BIG_BIRD,
        "big_bird.BigBirdSelfAttention": _RETURNED,
        "bigbird_pegasus.BigBirdPegasusEncoderAttention": _BIG_BIRD,
        "bigbird_pegasus.BigBirdPegasusSelfAttention": _RETURNED,
        "blip.BlipAttention": _before("projection"),
        "blip.blip_text.BlipTextSelfAttention": _RETURNED,
        "bloom.BloomAttention": _before("dense", unsupported_if=_reads_the_weight),
        "bros.BrosSelfAttention": _RETURNED,
        "canine.CanineSelfAttention": _RETURNED,
        "clap.ClapAudioSelfAttention": _RETURNED,
        "clvp.ClvpSelfAttention": _before("out_proj"),
        "codegen.CodeGenAttention": _before("out_proj"),
        "convbert.ConvBertSelfAttention": HookRow(heads=heads_of, width=_width_of_all_heads),
        "cpmant.CpmAntAttention": _before("attention_out"),
        "cvt.CvtSelfAttention": _RETURNED,
        "d_fine.DFineMultiscaleDeformableAttention": _DEFORMABLE_RETURNED,
        "dab_detr.DabDetrAttention": _before("output_proj"),
        "dab_detr.DetrAttention": _before("out_proj"),
        "data2vec.data2vec_vision.Data2VecVisionSdpaSelfAttention": _RETURNED,
        "data2vec.data2vec_vision.Data2VecVisionSelfAttention": _RETURNED,
        "deberta.DisentangledSelfAttention": _RETURNED,
        "deberta_v2.DisentangledSelfAttention": _RETURNED,
        "deepseek_ocr2.DeepseekOcr2SamVisionAttention": _before("proj"),
        "deepseek_ocr2.DeepseekOcr2SamVisionSdpaAttention": _before("proj"),
        "deformable_detr.DeformableDetrMultiscaleDeformableAttention": _DEFORMABLE,
        "deimv2.Deimv2MultiscaleDeformableAttention": _DEFORMABLE_RETURNED,
        "dinat.NeighborhoodAttention": _RETURNED,
        "donut.donut_swin.DonutSwinSelfAttention": _RETURNED,
        "edgetam.EdgeTamAttention": _before("o_proj"),
        "edgetam_video.EdgeTamVideoAttention": _before("o_proj"),
        "esm.esmfold.EsmFoldInvariantPointAttention": HookRow(
            hook_targets=("linear_out",),
            num_heads="num_heads",
            head_dim="hidden_dim",
            width=_width_of_scalars,
            definition=_SCALARS,
        ),
        "esmfold2.EsmFold2RowAttentionPooling": HookRow(hook_targets=("out_proj",), num_heads=1, kind="pooling"),
        "evolla.EvollaSequenceAlignerCrossAttention": _before("out_proj"),
        "evolla.EvollaSequenceCompressorAttention": _before("to_out"),
        "falcon.FalconAttention": _before("dense"),
        "falcon.FalconFlashAttention2": _before("dense"),
        "fastspeech2_conformer.FastSpeech2ConformerAttention": _before("linear_out"),
        "flaubert.MultiHeadAttention": _before("out_lin"),
        "flava.FlavaSelfAttention": _RETURNED,
        "fsmt.Attention": _before("out_proj"),
        "funnel.FunnelRelMultiheadAttention": _before("post_proj"),
        "gemma3n.Gemma3nAudioAttention": HookRow(heads=heads_of, form="tokens"),
        "gemma4.Gemma4AudioAttention": _before("post"),
        "git.GitSelfAttention": _RETURNED,
        "glpn.GLPNEfficientSelfAttention": _RETURNED,
        "got_ocr2.GotOcr2VisionAttention": _before("proj"),
        "gpt_neo.GPTNeoFlashAttention2": _before("out_proj"),
        "gpt_neo.GPTNeoSelfAttention": _before("out_proj"),
        "gpt_neox_japanese.GPTNeoXJapaneseAttention": _before("dense"),
        "gptj.GPTJAttention": _before("out_proj"),
        "gptj.GPTJFlashAttention2": _before("out_proj"),
        "granite_speech.GraniteSpeechConformerAttention": _before("to_out"),
        "granite_speech_plus.GraniteSpeechPlusConformerAttention": _before("to_out"),
        "grounding_dino.GroundingDinoBiMultiHeadAttention": _before("out_vision_proj", "out_text_proj"),
        "grounding_dino.GroundingDinoMultiheadAttention": _before("out_proj"),
        "grounding_dino.GroundingDinoMultiscaleDeformableAttention": _DEFORMABLE,
        "groupvit.GroupViTAttention": _before("out_proj"),
        "hiera.HieraMaskUnitAttention": _before("proj"),
        "ibert.IBertSelfAttention": _before("output_activation", unsupported_if=_quantized),
        "imagegpt.ImageGPTAttention": _before("c_proj"),
        "informer.InformerProbSparseAttention": _before(
            "out_proj",
            definition=_SELECTED_QUERIES,
        ),
        "kosmos2_5.Kosmos2_5VisionAttention": _before("output"),
        "layoutlmv2.LayoutLMv2SelfAttention": _RETURNED,
        "layoutlmv3.LayoutLMv3SelfAttention": _RETURNED,
        "led.LEDDecoderAttention": _before("out_proj"),
        "led.LEDEncoderSelfAttention": _RETURNED,
        "levit.LevitAttention": _before("activation"),
        "levit.LevitAttentionSubsample": _before("activation"),
        "longformer.LongformerSelfAttention": _RETURNED,
        "longt5.LongT5LocalAttention": _before("o"),
        "longt5.LongT5TransientGlobalAttention": _before("o"),
        "lw_detr.LwDetrMultiscaleDeformableAttention": _DEFORMABLE,
        "lxmert.LxmertAttention": _RETURNED,
        "mask2former.Mask2FormerAttention": _before("out_proj"),
        "mask2former.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention": _DEFORMABLE,
        "maskformer.maskformer_swin.MaskFormerSwinSelfAttention": _RETURNED,
        "megatron_bert.MegatronBertSelfAttention": _RETURNED,
        "mgp_str.MgpstrAttention": _before("proj"),
        "minimax.MiniMaxLightningAttention": _before(
            "norm",
            kind="linear",
            normalizes=True,
            definition=_LIGHTNING,
        ),
        "mm_grounding_dino.MMGroundingDinoBiMultiHeadAttention": _before("out_vision_proj", "out_text_proj"),
        "mm_grounding_dino.MMGroundingDinoMultiheadAttention": _before("out_proj"),
        "mm_grounding_dino.MMGroundingDinoMultiscaleDeformableAttention": _DEFORMABLE,
        "mobilevit.MobileViTSelfAttention": _RETURNED,
        "mpnet.MPNetSelfAttention": _before("o"),
        "mpt.MptAttention": _before("out_proj"),
        "mra.MraSelfAttention": HookRow(
            heads=heads_of, definition="what the approximation of the softmax matrix gives"
        ),
        "mvp.MvpAttention": _before("out_proj"),
        "omdet_turbo.OmDetTurboMultiheadAttention": _before("out_proj"),
        "omdet_turbo.OmDetTurboMultiscaleDeformableAttention": _DEFORMABLE,
        "oneformer.OneFormerAttention": _before("out_proj"),
        "oneformer.OneFormerPixelDecoderEncoderMultiscaleDeformableAttention": _DEFORMABLE,
        "oneformer.OneFormerTextMapperAttention": _before("proj"),
        "openai.Attention": _before("c_proj"),
        "pegasus_x.PegasusXGlobalLocalAttention": _before("out_proj"),
        "perceiver.PerceiverSelfAttention": _RETURNED,
        "pp_doclayout_v2.PPDocLayoutV2MultiscaleDeformableAttention": _DEFORMABLE,
        "pp_doclayout_v2.PPDocLayoutV2ReadingOrderSelfAttention": _RETURNED,
        "pp_doclayout_v3.PPDocLayoutV3MultiscaleDeformableAttention": _DEFORMABLE,
        "pp_doclayout_v4.PPDocLayoutV4MultiscaleDeformableAttention": _DEFORMABLE,
        "pp_formulanet.PPFormulaNetVisionAttention": _before("proj"),
        "prophetnet.ProphetNetAttention": _before("out_proj"),
        "prophetnet.ProphetNetNgramSelfAttention": _before("out_proj"),
        "pvt.PvtEfficientSelfAttention": _RETURNED,
        "pvt_v2.PvtV2SelfAttention": _before("proj"),
        "qwen2_5_omni.DiTAttention": _before("to_out.0"),
        "rembert.RemBertSelfAttention": _RETURNED,
        "rf_detr.RfDetrMultiscaleDeformableAttention": _DEFORMABLE,
        "roformer.RoFormerSelfAttention": _RETURNED,
        "rt_detr.RTDetrMultiscaleDeformableAttention": _DEFORMABLE,
        "rt_detr_v2.RTDetrV2MultiscaleDeformableAttention": _DEFORMABLE,
        "sam.SamVisionAttention": _before("proj"),
        "sam.SamVisionSdpaAttention": _before("proj"),
        "sam2.Sam2Attention": _before("o_proj"),
        "sam2_video.Sam2VideoAttention": _before("o_proj"),
        "sam3.Sam3Attention": _before("o_proj"),
        "sam3_lite_text.Sam3LiteTextAttention": _before("o_proj"),
        "sam3_tracker.Sam3TrackerAttention": _before("o_proj"),
        "sam3_tracker_video.Sam3TrackerVideoAttention": _before("o_proj"),
        "sam_hq.SamHQVisionAttention": _before("proj"),
        "sam_hq.SamHQVisionSdpaAttention": _before("proj"),
        "seggpt.SegGptAttention": _before("proj"),
        "sew_d.DisentangledSelfAttention": _RETURNED,
        "slanext.SLANeXtVisionAttention": _before("proj"),
        "speecht5.SpeechT5Attention": _before("out_proj"),
        "squeezebert.SqueezeBertSelfAttention": HookRow(
            heads=heads_of, form="split", output_of="matmul_qkv", parts=("matmul_qkv",)
        ),
        "superglue.SuperGlueSelfAttention": _RETURNED,
        "swin2sr.Swin2SRSelfAttention": _RETURNED,
        "swinv2.Swinv2SelfAttention": _RETURNED,
        "table_transformer.TableTransformerAttention": _before("out_proj"),
        "tapas.TapasSelfAttention": _RETURNED,
        "timesformer.TimesformerSelfAttention": _RETURNED,
        "trocr.TrOCRAttention": _before("out_proj"),
        "tvp.TvpAttention": _before("dense"),
        "unlimited_ocr.UnlimitedOcrSamVisionAttention": _before("proj"),
        "unlimited_ocr.UnlimitedOcrSamVisionSdpaAttention": _before("proj"),
        "vilt.ViltSelfAttention": _RETURNED,
        "visual_bert.VisualBertSelfAttention": _RETURNED,
        "vitdet.VitDetAttention": _before("proj"),
        "vits.VitsAttention": _before("out_proj"),
        "xglm.XGLMAttention": _before("out_proj"),
        "xlm.MultiHeadAttention": _before("out_lin"),
        "zoedepth.ZoeDepthMultiheadAttention": _before("out_proj"),
    }.items()
} | {"transformers.models.idefics.perceiver.IdeficsPerceiverAttention": _before("output_proj")}

# One head as wide as what the projection takes: tokens, or with a convolution images or series.
SINGLE_HEAD = HookRow(hook_targets=_single_head_projection, num_heads=1)
SINGLE_HEAD_CLASSES = tuple(
    map(
        qualified,
        (
            "apertus1p5.Apertus1p5VisionTokenizerAttnBlock",
            "chameleon.ChameleonVQVAEEncoderAttnBlock",
            "groupvit.GroupViTAssignAttention",
            "janus.JanusVQVAEAttnBlock",
            "wavtokenizer.WavTokenizerVocosAttention",
        ),
    )
)

# Softmax and products for something else: scores or weights without values; scores of a search, a match or a loss;
# mixtures of layers, experts, embeddings or bins; and models that do one of these beside the attention that they hold.
COMPOSITES = tuple(
    map(
        qualified,
        (
            "aria.AriaCrossAttention",
            "chmv2.CHMv2FeaturesToDepth",
            "conditional_detr.ConditionalDetrMHAttentionMap",
            "dab_detr.DabDetrMHAttentionMap",
            "detr.DetrMHAttentionMap",
            "diffusion_gemma.DiffusionGemmaDecoderModel",
            "doge.DogeCDMoE",
            "efficientloftr.EfficientLoFTRForKeypointMatching",
            "eomt.EomtHungarianMatcher",
            "eomt_dinov3.EomtDinov3HungarianMatcher",
            "esm.esmfold.EsmForProteinFolding",
            "esmfold2.EsmFold2ConfidenceHead",
            "esmfold2.EsmFold2LanguageModelEncoder",
            "flaubert.FlaubertSQuADHead",
            "glm5_next.Glm5NextTextIndexer",
            "lightglue.LightGlueMatchAssignmentLayer",
            "mask2former.Mask2FormerHungarianMatcher",
            "maskformer.MaskFormerDetrMHAttentionMap",
            "maskformer.MaskFormerHungarianMatcher",
            "oneformer.OneFormerHungarianMatcher",
            "tapas.TapasForQuestionAnswering",
            "videomt.VideomtHungarianMatcher",
            "videoprism.VideoPrismClipModel",
            "visual_bert.VisualBertRegionToPhraseAttention",
            "xlm.XLMSQuADHead",
            "xlnet.XLNetForQuestionAnswering",
        ),
    )
)
