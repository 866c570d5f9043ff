import copy
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from tests.helpers.explicit import diagonal_product, relative_error
from tests.helpers.oracle import jitter_, normalizing_inside

pytest.importorskip("diffusers")

import diffusers
from diffusers.models import attention_processor as processors
from diffusers.models.attention_processor import Attention, MochiAttention
from diffusers.models.embeddings import MochiAttentionPool
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxIPAdapterAttnProcessor
from diffusers.models.transformers.transformer_flux2 import Flux2Attention, Flux2ParallelSelfAttention
from diffusers.models.transformers.transformer_ltx import LTXAttention
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention
from diffusers.models.transformers.transformer_wan import WanAttention

CLASSES = (
    *(Attention, FluxAttention, Flux2Attention, Flux2ParallelSelfAttention, LTXAttention, LTX2Attention),
    *(MochiAttention, MochiAttentionPool, WanAttention),
)


Built = tuple[nn.Module, dict[str, Any]]  # a small model and what it is called with


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def conditional_unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=6,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def added_key_unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=6,
        attention_head_dim=4, down_block_types=("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
    )  # fmt: skip


def flux_inputs() -> dict[str, Any]:
    tokens = {"hidden_states": normal(2, 4, 4), "encoder_hidden_states": normal(2, 3, 6)}
    return {**tokens, "timestep": torch.tensor([1.0, 2.0]).double()}


def unet() -> Built:
    inputs = {"sample": normal(2, 4, 8, 8), "encoder_hidden_states": normal(2, 5, 6)}
    return conditional_unet(), {**inputs, "timestep": torch.tensor([3, 4])}


def unet_added() -> Built:
    return added_key_unet(), unet()[1]


def unet_unconditional() -> Built:
    model = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, {"sample": normal(2, 3, 8, 8), "timestep": torch.tensor([3, 4])}


def unet_video() -> Built:
    model = diffusers.UNet3DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=6,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    inputs = {"sample": normal(1, 4, 3, 8, 8), "encoder_hidden_states": normal(1, 5, 6), "timestep": torch.tensor([3])}
    return model, inputs


def autoencoder() -> Built:
    model = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    return model, {"sample": normal(2, 3, 8, 8)}


def dit() -> Built:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=4, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=2,
    )  # fmt: skip
    labels = {"timestep": torch.tensor([1, 2]), "class_labels": torch.tensor([3, 4])}
    return model, {"hidden_states": normal(2, 4, 8, 8), **labels}


def pixart() -> Built:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=4, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        cross_attention_dim=12, caption_channels=6, use_additional_conditions=False,
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": normal(2, 5, 6)}
    return model, {**inputs, "timestep": torch.tensor([1, 2])}


def sd3(dual_attention_layers: tuple[int, ...] = (0,)) -> Built:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=3,
        joint_attention_dim=6, caption_projection_dim=12, pooled_projection_dim=5, out_channels=4, pos_embed_max_size=8,
        dual_attention_layers=dual_attention_layers, qk_norm="rms_norm",
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": normal(2, 5, 6)}
    return model, {**inputs, "pooled_projections": normal(2, 5), "timestep": torch.tensor([1, 2])}


def flux() -> Built:
    model = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=6, pooled_projection_dim=5, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    ids = {"img_ids": torch.randn(4, 3), "txt_ids": torch.zeros(3, 3)}
    return model, {**flux_inputs(), "pooled_projections": normal(2, 5), **ids}


def flux2() -> Built:
    model = diffusers.Flux2Transformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=6, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip
    return model, {**flux_inputs(), "img_ids": torch.randn(4, 4), "txt_ids": torch.zeros(3, 4)}


def qwen() -> Built:
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=4, out_channels=1, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=6, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return model, {**flux_inputs(), "img_shapes": [[(1, 2, 2)]] * 2}


def wan() -> Built:
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, text_dim=6, freq_dim=8, ffn_dim=16,
        num_layers=2, cross_attn_norm=True,
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 4, 2, 4, 4), "encoder_hidden_states": normal(2, 5, 6)}
    return model, {**inputs, "timestep": torch.tensor([1, 2])}


def ltx() -> Built:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=2, caption_channels=6,
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 8, 4), "encoder_hidden_states": normal(2, 5, 6)}
    inputs |= {"timestep": torch.tensor([1, 2]), "encoder_attention_mask": torch.ones(2, 5)}
    return model, {**inputs, "num_frames": 2, "height": 2, "width": 2}


def auraflow() -> Built:
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=4,
        num_attention_heads=3, joint_attention_dim=6, caption_projection_dim=12, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": normal(2, 5, 6)}
    return model, {**inputs, "timestep": torch.tensor([1.0, 2.0]).double()}


def cogvideox() -> Built:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=4, text_embed_dim=6,
        num_layers=2, sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=5,
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 2, 4, 8, 8), "encoder_hidden_states": normal(2, 5, 6)}
    return model, {**inputs, "timestep": torch.tensor([1, 2])}


def cogview4() -> Built:
    model = diffusers.CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, text_embed_dim=6,
        time_embed_dim=8, condition_dim=4, sample_size=8, rope_axes_dim=(8, 8),
    )  # fmt: skip
    size = torch.full((2, 2), 8.0, dtype=torch.float64)
    inputs = {"hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": normal(2, 5, 6)}
    sizes = {"original_size": size, "target_size": size, "crop_coords": size}
    return model, {**inputs, **sizes, "timestep": torch.tensor([1, 2])}


def hunyuan() -> Built:
    model = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8, hidden_size=16,
        num_layers=2, cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=4, text_len=3,
        text_len_t5=4, use_style_cond_and_image_meta_size=False,
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 4, 8, 8), "timestep": torch.tensor([1, 2]).double()}
    texts = {"encoder_hidden_states": normal(2, 3, 16), "encoder_hidden_states_t5": normal(2, 4, 16)}
    masks = {"text_embedding_mask": torch.ones(2, 3), "text_embedding_mask_t5": torch.ones(2, 4)}
    return model, {**inputs, **texts, **masks, "image_rotary_emb": (normal(16, 8), normal(16, 8))}


def lumina2() -> Built:
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2), axes_lens=(32, 32, 32), cap_feat_dim=6,
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": normal(2, 5, 6)}
    mask = torch.ones(2, 5, dtype=torch.bool)
    return model, {**inputs, "encoder_attention_mask": mask, "timestep": torch.tensor([0.1, 0.2]).double()}


def allegro() -> Built:
    model = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=2, caption_channels=6,
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 4, 2, 8, 8), "encoder_hidden_states": normal(2, 5, 6)}
    masks = {"attention_mask": torch.ones(2, 2, 8, 8), "encoder_attention_mask": torch.ones(2, 5)}
    return model, {**inputs, **masks, "timestep": torch.tensor([1, 2])}


def stable_audio() -> Built:
    model = diffusers.StableAudioDiTModel(
        sample_size=4, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4,
        num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=6, time_proj_dim=8,
        global_states_input_dim=8, cross_attention_input_dim=6,
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 4, 7), "encoder_hidden_states": normal(2, 5, 6)}
    inputs |= {"global_hidden_states": normal(2, 1, 8), "timestep": torch.tensor([1.0, 2.0]).double()}
    return model, {**inputs, "rotary_embedding": (normal(8, 2), normal(8, 2))}


def hunyuan_video() -> Built:
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, guidance_embeds=False, text_embed_dim=6, pooled_projection_dim=5,
        rope_axes_dim=(2, 2, 4),
    )  # fmt: skip
    inputs = {"hidden_states": normal(2, 4, 2, 4, 4), "encoder_hidden_states": normal(2, 5, 6)}
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs |= {"encoder_attention_mask": mask, "pooled_projections": normal(2, 5)}
    return model, {**inputs, "timestep": torch.tensor([1, 2])}


def mochi() -> Built:
    model = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=8, in_channels=4,
        text_embed_dim=16, time_embed_dim=4, max_sequence_length=5,
    )  # fmt: skip
    inputs = {"hidden_states": normal(1, 4, 2, 4, 4), "encoder_hidden_states": normal(1, 5, 16)}
    mask = torch.tensor([[1, 1, 1, 0, 0]], dtype=torch.bool)  # it attends sample by sample
    return model, {**inputs, "encoder_attention_mask": mask, "timestep": torch.tensor([1])}


def ltx2() -> Built:
    model = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=6,
    )  # fmt: skip
    video = {"hidden_states": normal(2, 8, 4), "encoder_hidden_states": normal(2, 5, 6)}
    audio = {"audio_hidden_states": normal(2, 4, 4), "audio_encoder_hidden_states": normal(2, 5, 6)}
    sizes = {"num_frames": 2, "height": 2, "width": 2, "audio_num_frames": 4}
    return model, {**video, **audio, **sizes, "timestep": torch.tensor([1, 2])}


MODELS = [
    *(unet, unet_added, unet_unconditional, unet_video, autoencoder, dit, pixart, sd3, flux, flux2, qwen, wan, ltx),
    *(auraflow, cogvideox, cogview4, hunyuan, hunyuan_video, lumina2, ltx2, mochi, allegro, stable_audio),
]


def first_output(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    torch.manual_seed(1)
    return model(**inputs, return_dict=False)[0]


CASES = [
    pytest.param(
        build,
        training,
        id=f"{build.__name__}-{'train' if training else 'eval'}",
        marks=[pytest.mark.slow] if training and build not in (unet, dit, flux) else [],
    )
    for build in MODELS
    for training in (True, False)
]


@pytest.mark.parametrize(("build", "training"), CASES)
def test_whole_models(build: Callable[[], Built], training: bool) -> None:
    model, inputs = build()
    model = jitter_(model, 0.1).double().train(training)
    state, plain = copy.deepcopy(model.state_dict()), first_output(model, inputs)
    with normalizing_inside(model, *CLASSES) as widths:
        expected = first_output(model, inputs)
    # the pooling of HunyuanDiT's text is refused
    report = precondition_(model, include=("softmax", "pooling"), strict=build is not hunyuan)
    assert len(report.converted) == len(widths) > 0
    assert set(widths) == {entry.head_dim for entry in report.converted}
    assert relative_error(first_output(model, inputs), expected) <= 1e-10
    assert relative_error(plain, expected) > 1e-4
    report.verify(**inputs)
    restore_(model)
    assert torch.equal(first_output(model, inputs), plain)
    assert model.state_dict().keys() == state.keys()


FLUX_LIKE = [
    *("bria.BriaAttention", "bria_fibo.BriaFiboAttention", "flux.FluxAttention"),
    *("longcat_image.LongCatImageAttention", "ovis_image.OvisImageAttention"),
]
WAN_LIKE = {
    "chronoedit.WanAttention": "WanAttnProcessor",
    "skyreels_v2.SkyReelsV2Attention": "SkyReelsV2AttnProcessor",
    "wan_animate.WanAttention": "WanAttnProcessor",
}
SHARED = {
    "bria.BriaAttnProcessor": {"qk_norm": "rms_norm", "pre_only": True},
    "cosmos.CosmosAttnProcessor2_0": {"qk_norm": "rms_norm", "out_bias": False},
    "glm_image.GlmImageAttnProcessor": {"qk_norm": "layer_norm", "elementwise_affine": False},
    "z_image.ZSingleStreamAttnProcessor": {"qk_norm": "rms_norm", "out_bias": False},
}
ONE, TWO = ("hidden_states",), ("hidden_states", "encoder_hidden_states")


def found(name: str) -> Any:
    module, attribute = name.rsplit(".", 1)
    return getattr(importlib.import_module(f"diffusers.models.transformers.transformer_{module}"), attribute)


def joint(name: str) -> nn.Module:
    return found(name)(16, heads=2, dim_head=8, added_kv_proj_dim=16, context_pre_only=False, bias=True)


def wan_like(name: str, **options: Any) -> nn.Module:
    processor = found(f"{name.split('.')[0]}.{WAN_LIKE[name]}")()
    return found(name)(16, heads=2, dim_head=8, processor=processor, **options)


def shared(name: str) -> nn.Module:
    return Attention(16, heads=2, dim_head=8, processor=found(name)(), **SHARED[name])


def sana() -> nn.Module:
    processor = importlib.import_module("diffusers.models.transformers.sana_transformer").SanaAttnProcessor2_0()
    return Attention(16, 16, heads=2, dim_head=8, processor=processor)


MODULES = {
    **{f"{name}, joint": (partial(joint, name), TWO) for name in FLUX_LIKE},
    **{name: (partial(lambda n: found(n)(16, heads=2, dim_head=8, pre_only=True), name), ONE) for name in FLUX_LIKE},
    **{name: (partial(wan_like, name), ONE) for name in WAN_LIKE},
    **{f"{name}, cross": (partial(wan_like, name, cross_attention_dim_head=8), TWO) for name in WAN_LIKE},
    **{name: (partial(shared, name), TWO if "glm" in name else ONE) for name in SHARED},
    "sana": (sana, TWO),
}


@pytest.mark.parametrize(("build", "streams"), MODULES.values(), ids=MODULES.keys())
def test_attention_of_other_models(build: Callable[[], nn.Module], streams: tuple[str, ...]) -> None:
    module = jitter_(build(), 0.1).double()
    inputs = {name: normal(2, 3 + i, 16) for i, name in enumerate(streams)}

    def run() -> Tensor:
        out = module(**inputs)
        return out if isinstance(out, Tensor) else torch.cat(out, dim=1)

    plain = run()
    with normalizing_inside(module, type(module)) as widths:
        expected = run()
    assert widths == [8]
    precondition_(module, strict=True)
    assert relative_error(run(), expected) <= 1e-10
    assert relative_error(plain, expected) > 1e-3
    restore_(module)
    assert torch.equal(run(), plain)


@pytest.mark.parametrize(
    ("build", "processor"),
    [
        (unet, processors.AttnProcessor()),
        (unet, processors.SlicedAttnProcessor(slice_size=1)),
        (unet_added, processors.AttnAddedKVProcessor()),
        (unet_added, processors.SlicedAttnAddedKVProcessor(slice_size=1)),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_known_processor_may_come_at_any_time(build: Callable[[], Built], processor: object) -> None:
    model, inputs = build()
    model = jitter_(model, 0.1).double().eval()
    converted = copy.deepcopy(model)
    model.set_attn_processor(processor)
    with normalizing_inside(model, *CLASSES):
        expected = first_output(model, inputs)
    precondition_(converted, strict=True)
    converted.set_attn_processor(processor)
    assert relative_error(first_output(converted, inputs), expected) <= 1e-10


def sd3_without_dual() -> Built:
    return sd3(())  # upstream's fused processor cannot run dual layers


FUSED = [unet, sd3_without_dual, flux, auraflow, cogvideox]


@pytest.mark.parametrize("build", FUSED, ids=lambda build: build.__name__)
def test_fused_projections_may_come_at_any_time(build: Callable[[], Built]) -> None:
    model, inputs = build()
    model = jitter_(model, 0.1).double().eval()
    converted = copy.deepcopy(model)
    model.fuse_qkv_projections()
    with normalizing_inside(model, *CLASSES):
        expected = first_output(model, inputs)
    precondition_(converted, strict=True)
    converted.fuse_qkv_projections()
    assert relative_error(first_output(converted, inputs), expected) <= 1e-10
    precondition_(model, strict=True)
    assert relative_error(first_output(model, inputs), expected) <= 1e-10


def test_a_processor_that_is_not_known_is_refused_before_and_after() -> None:
    model, inputs = flux()
    model.double()
    before = first_output(model, inputs)
    adapted = copy.deepcopy(model)
    adapted.transformer_blocks[0].attn.set_processor(FluxIPAdapterAttnProcessor(16, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="FluxIPAdapterAttnProcessor: it attends once more"):
        precondition_(adapted, strict=True)
    report = precondition_(model, strict=True)
    assert len(report.converted) == 3
    known = model.transformer_blocks[0].attn.get_processor()
    model.transformer_blocks[0].attn.set_processor(FluxIPAdapterAttnProcessor(16, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="go back to the processor"):
        first_output(model, inputs)
    model.transformer_blocks[0].attn.set_processor(known)
    report.verify(**inputs)
    restore_(model)
    assert torch.equal(first_output(model, inputs), before)


def test_two_attentions_in_one_sum_are_refused() -> None:
    with pytest.raises(ValueError, match="it sums two attentions"):
        precondition_(WanAttention(16, heads=2, dim_head=8, added_kv_proj_dim=6, cross_attention_dim_head=8))


def test_single_stream_blocks_by_hand() -> None:
    """Attention without a projection of its own: the rows are what it returns, and what the block projects."""
    model, _ = flux()
    block = jitter_(model.single_transformer_blocks[0], 0.1).double()
    attn, x = block.attn, normal(2, 7, 16)
    rows = diagonal_product(attn(hidden_states=x).unflatten(-1, (2, 8)))
    precondition_(block, PreconditionConfig(gain=3.0), strict=True)
    assert relative_error(attn(hidden_states=x), 3 * rows.flatten(-2)) <= 1e-12


@pytest.mark.slow
def test_copies_and_compiled_forms() -> None:
    model, inputs = flux()
    model.double()
    precondition_(model, strict=True)
    expected = first_output(model, inputs)
    assert torch.equal(first_output(copy.deepcopy(model), inputs), expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert relative_error(first_output(compiled, inputs), expected) <= 1e-12
