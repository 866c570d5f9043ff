"""transformers: the attention classes that do not look their function up in `ALL_ATTENTION_FUNCTIONS`.

Two tables say where each of them shows its heads' outputs: in what it returns, or to the child that sees them first.
Gates, norms and projections come after that place. Classes that show them in a form of their own are in
`hooks`, those that are refused in `unsupported`. Six show them to no module at all; their
replacements are in `swaps_xlnet` and `swaps_esmfold`, imported only when a model holds one of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import ClassVar

from torch import nn

from ....layers import Preconditioner
from ...mechanisms import ClassSwap, PostHook, PreHook, text_digest
from ...registry import Adapter, HeadShape, class_name, composites_named, read_int, register_named
from .class_names import qualified


def named(entries: str) -> list[str]:
    """Qualified names from short ones."""
    return [qualified(short) for short in entries.split()]


# They return the merged heads, alone or first in a tuple; the projection is in a sibling.
RETURNED = named(
    """
    big_bird.BigBirdSelfAttention bigbird_pegasus.BigBirdPegasusSelfAttention blip.blip_text.BlipTextSelfAttention
    bros.BrosSelfAttention canine.CanineSelfAttention clap.ClapAudioSelfAttention cvt.CvtSelfAttention
    data2vec.data2vec_vision.Data2VecVisionSelfAttention data2vec.data2vec_vision.Data2VecVisionSdpaSelfAttention
    deberta.DisentangledSelfAttention deberta_v2.DisentangledSelfAttention dinat.NeighborhoodAttention
    donut.donut_swin.DonutSwinSelfAttention
    flava.FlavaSelfAttention git.GitSelfAttention glpn.GLPNEfficientSelfAttention layoutlmv2.LayoutLMv2SelfAttention
    layoutlmv3.LayoutLMv3SelfAttention led.LEDEncoderSelfAttention longformer.LongformerSelfAttention
    lxmert.LxmertAttention maskformer.maskformer_swin.MaskFormerSwinSelfAttention
    megatron_bert.MegatronBertSelfAttention mobilevit.MobileViTSelfAttention perceiver.PerceiverSelfAttention
    pp_doclayout_v2.PPDocLayoutV2ReadingOrderSelfAttention pvt.PvtEfficientSelfAttention rembert.RemBertSelfAttention
    roformer.RoFormerSelfAttention sew_d.DisentangledSelfAttention
    superglue.SuperGlueSelfAttention swin2sr.Swin2SRSelfAttention swinv2.Swinv2SelfAttention tapas.TapasSelfAttention
    timesformer.TimesformerSelfAttention vilt.ViltSelfAttention visual_bert.VisualBertSelfAttention
    """
)

# The child, or children where several streams leave one attention, that see the merged heads first.
SEEN_BY: dict[str, tuple[str, ...]] = {
    name: tuple(points.split())
    for points, entries in {
        "activation": "levit.LevitAttention levit.LevitAttentionSubsample",
        "attention_out": "cpmant.CpmAntAttention",
        "c_proj": "imagegpt.ImageGPTAttention openai.Attention",
        "dense": """
            bloom.BloomAttention falcon.FalconAttention falcon.FalconFlashAttention2
            gpt_neox_japanese.GPTNeoXJapaneseAttention tvp.TvpAttention
            """,
        "linear_out": "fastspeech2_conformer.FastSpeech2ConformerAttention",
        # Dispatching classes that now and then take a function past the look-up.
        "o_proj": """
            edgetam.EdgeTamAttention edgetam_video.EdgeTamVideoAttention sam2.Sam2Attention
            sam2_video.Sam2VideoAttention sam3.Sam3Attention sam3_lite_text.Sam3LiteTextAttention
            sam3_tracker.Sam3TrackerAttention sam3_tracker_video.Sam3TrackerVideoAttention
            """,
        "output": "kosmos2_5.Kosmos2_5VisionAttention",
        "post": "gemma4.Gemma4AudioAttention",
        "post_proj": "funnel.FunnelRelMultiheadAttention",
        "to_out": """
            evolla.EvollaSequenceCompressorAttention granite_speech.GraniteSpeechConformerAttention
            granite_speech_plus.GraniteSpeechPlusConformerAttention
            """,
        "to_out.0": "qwen2_5_omni.DiTAttention",
        "o": "longt5.LongT5LocalAttention longt5.LongT5TransientGlobalAttention mpnet.MPNetSelfAttention",
        "out_lin": "flaubert.MultiHeadAttention xlm.MultiHeadAttention",
        "out_proj": """
            bark.BarkSelfAttention bark.BarkSelfFlashAttention2 clvp.ClvpSelfAttention codegen.CodeGenAttention
            dab_detr.DetrAttention evolla.EvollaSequenceAlignerCrossAttention fsmt.Attention
            gpt_neo.GPTNeoSelfAttention gpt_neo.GPTNeoFlashAttention2
            gptj.GPTJAttention gptj.GPTJFlashAttention2 grounding_dino.GroundingDinoMultiheadAttention
            groupvit.GroupViTAttention led.LEDDecoderAttention mask2former.Mask2FormerAttention
            mm_grounding_dino.MMGroundingDinoMultiheadAttention mpt.MptAttention mvp.MvpAttention
            omdet_turbo.OmDetTurboMultiheadAttention oneformer.OneFormerAttention
            pegasus_x.PegasusXGlobalLocalAttention prophetnet.ProphetNetAttention
            prophetnet.ProphetNetNgramSelfAttention speecht5.SpeechT5Attention
            table_transformer.TableTransformerAttention trocr.TrOCRAttention vits.VitsAttention xglm.XGLMAttention
            zoedepth.ZoeDepthMultiheadAttention
            """,
        "out_vision_proj out_text_proj": """
            grounding_dino.GroundingDinoBiMultiHeadAttention mm_grounding_dino.MMGroundingDinoBiMultiHeadAttention
            """,
        "output_proj": "dab_detr.DabDetrAttention",
        "proj": """
            deepseek_ocr2.DeepseekOcr2SamVisionAttention deepseek_ocr2.DeepseekOcr2SamVisionSdpaAttention
            got_ocr2.GotOcr2VisionAttention hiera.HieraMaskUnitAttention mgp_str.MgpstrAttention
            oneformer.OneFormerTextMapperAttention pp_formulanet.PPFormulaNetVisionAttention
            pvt_v2.PvtV2SelfAttention sam.SamVisionAttention sam.SamVisionSdpaAttention sam_hq.SamHQVisionAttention
            sam_hq.SamHQVisionSdpaAttention
            seggpt.SegGptAttention slanext.SLANeXtVisionAttention unlimited_ocr.UnlimitedOcrSamVisionAttention
            unlimited_ocr.UnlimitedOcrSamVisionSdpaAttention vitdet.VitDetAttention
            """,
        "projection": "blip.BlipAttention",
    }.items()
    for name in named(entries)
} | {"transformers.models.idefics.perceiver.IdeficsPerceiverAttention": ("output_proj",)}

# Deformable attention, whose merged rows go to `output_proj`.
DEFORMABLE = named(
    """
    deformable_detr.DeformableDetrMultiscaleDeformableAttention
    grounding_dino.GroundingDinoMultiscaleDeformableAttention lw_detr.LwDetrMultiscaleDeformableAttention
    mask2former.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention
    mm_grounding_dino.MMGroundingDinoMultiscaleDeformableAttention
    omdet_turbo.OmDetTurboMultiscaleDeformableAttention
    oneformer.OneFormerPixelDecoderEncoderMultiscaleDeformableAttention
    rf_detr.RfDetrMultiscaleDeformableAttention rt_detr.RTDetrMultiscaleDeformableAttention
    pp_doclayout_v2.PPDocLayoutV2MultiscaleDeformableAttention
    pp_doclayout_v3.PPDocLayoutV3MultiscaleDeformableAttention
    pp_doclayout_v4.PPDocLayoutV4MultiscaleDeformableAttention rt_detr_v2.RTDetrV2MultiscaleDeformableAttention
    """
)

# File of replacements -> the classes that it replaces.
SWAPPED = {
    "swaps_xlnet": named("nystromformer.NystromformerSelfAttention wavlm.WavLMAttention xlnet.XLNetRelativeAttention"),
    "swaps_esmfold": named(
        "esm.esmfold.EsmFoldAttention esm.esmfold.EsmFoldSelfAttention esmfold2.EsmFold2MSAPairWeightedAveraging"
    ),
}

_NUM_HEADS = (
    *("num_attention_heads", "num_heads", "n_heads", "n_head", "num_attn_heads", "attention_heads", "heads"),
    "no_heads",
)
# `values_head_dim` and its like before `head_dim`: what counts is the width of the output.
_HEAD_DIM = (
    *("attention_head_size", "values_head_dim", "v_channels_per_head", "key_value_proj_dim", "d_head", "dim_head"),
    *("head_dim", "head_width", "c_hidden"),
)
_WIDTH = ("out_dim_projection", "embed_dim", "d_model", "inner_dim", "hidden_size", "split_size")


def own_shape(module: nn.Module) -> HeadShape:
    """From the attribute names in use across these classes, or their configurations; or a projection's width."""
    source = module if read_int(module, *_NUM_HEADS) else getattr(module, "config", None)
    num_heads, head_dim, width = (read_int(source, *names) for names in (_NUM_HEADS, _HEAD_DIM, _WIDTH))
    if width is None:
        projections = (getattr(module, name, None) for name in ("proj", "qkv", "to_out"))
        width = next((found for p in projections if (found := read_int(p, "in_features"))), None)
    if head_dim is None and num_heads and width:
        head_dim = width // num_heads
    return HeadShape(num_heads, head_dim)


@register_named(*RETURNED)
class ReturnedHeads(PostHook):
    """Classes that return the merged heads."""

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return own_shape(module)


@register_named(*SEEN_BY)
class ProjectedHeads(PreHook):
    """Classes that hand the merged heads to a child."""

    def points(self, module: nn.Module) -> tuple[str, ...]:
        """From the table."""
        names = (class_name(base) for base in type(module).__mro__)
        return next(SEEN_BY[name] for name in names if name in SEEN_BY)

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return own_shape(module)

    def refusal(self, module: nn.Module) -> str | None:
        """Bloom's exact emulation of tensor parallelism, which reads the projection's weight itself."""
        if getattr(module, "slow_but_exact", False) and getattr(module, "pretraining_tp", 1) > 1:
            return "pretraining_tp > 1 with slow_but_exact=True goes around `dense`; set slow_but_exact to False"
        return None


@register_named(*DEFORMABLE)
class DeformableHeads(PreHook):
    """Deformable attention."""

    point = "output_proj"
    definition = "the sum of the values sampled for a query, weighted by a softmax"

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return own_shape(module)


class KnownSwap(ClassSwap):
    """A class swap for one text of one method."""

    method: ClassVar[str]  # what the replacement stands in for
    known: ClassVar[str]  # digest of its text in transformers 5.23.0

    def serves(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """The exact class, if upstream's method is the one that is known."""
        return super().serves(cls, registered) and text_digest(getattr(self.original, self.method)) == self.known

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return own_shape(module)


class Swapped(Adapter):
    """Classes that need a replacement, whose file is imported when a model holds one."""

    mechanism = "class swap"

    def serves(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether there is a replacement for ``cls``, or ``cls`` is one."""
        return _swap(cls) is not None

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return _known_swap(module).shape(module)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Swap the class in."""
        _known_swap(module).attach(module, preconditioner)

    def detach(self, module: nn.Module) -> None:
        """Swap it back."""
        _known_swap(module).detach(module)


@register_named(*named("nystromformer.NystromformerSelfAttention"))
class SwappedWithSkip(Swapped):
    """Nystromformer, which adds a convolution of the values to its heads' outputs."""

    value_skip = True


register_named(*(name for names in SWAPPED.values() for name in names if "nystromformer" not in name))(Swapped)


def _swap(cls: type[nn.Module]) -> ClassSwap | None:
    names = {class_name(base) for base in cls.__mro__}
    for file, swapped in SWAPPED.items():
        if not names.isdisjoint(swapped):
            found: ClassSwap | None = import_module(f".{file}", __package__).find(cls)
            return found
    return None


def _known_swap(module: nn.Module) -> ClassSwap:
    swap = _swap(type(module))
    assert swap is not None, "served only where there is one"
    return swap


# Softmax and products for something else: scores or weights without values; scores of a search, a match or a loss;
# mixtures of layers, experts, embeddings or bins; and models that do one of these beside the attention that they hold.
COMPOSITES = named(
    """
    aria.AriaCrossAttention
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
composites_named(*COMPOSITES)
