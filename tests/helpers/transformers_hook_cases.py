"""Tiny random transformers models whose attention is converted by hooks or swaps, not by the look-up; with inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.helpers.transformers_cases import (
    IMAGE,
    SEQ2SEQ,
    SPEECH,
    T5,
    TEXT,
    TOWERS,
    WINDOWS,
    Case,
    captioned,
    frames,
    generator,
    image,
    pairs,
    same,
    tokens,
    wave,
)

_TAPAS = {**TEXT, "type_vocab_sizes": [3, 8, 8, 2, 8, 8, 2], "type_vocab_size": [3, 8, 8, 2, 8, 8, 2]}
_LAYOUT = {
    **TEXT,
    "max_2d_position_embeddings": 32,
    "coordinate_size": 4,
    "shape_size": 8,
    "visual_embed": False,
    "has_relative_attention_bias": True,
    "has_spatial_attention_bias": True,
}
_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 40, "max_position_embeddings": 64}
_PYRAMID = {
    "image_size": 32,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 16, 32],
    "num_attention_heads": [1, 2, 2, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "sr_ratios": [4, 2, 1, 1],
    "sequence_reduction_ratios": [4, 2, 1, 1],
}


def tables() -> dict[str, Tensor]:
    """Padded tokens with the seven kinds of token type that TAPAS takes."""
    return {**tokens(), "token_type_ids": torch.zeros(2, 12, 7, dtype=torch.int64)}


def boxes() -> dict[str, Tensor]:
    """Padded tokens with their boxes on the page."""
    corners = torch.randint(0, 15, (2, 12, 2), generator=generator())
    return {**tokens(), "bbox": torch.cat([corners, corners + 5], dim=-1)}


def entities() -> dict[str, Tensor]:
    """Padded tokens with the entities that some of them name."""
    return {
        **tokens(),
        "entity_ids": torch.randint(1, 10, (2, 4), generator=generator()),
        "entity_attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "entity_position_ids": torch.randint(0, 12, (2, 4, 3), generator=generator()),
    }


_FUNNEL = {
    "vocab_size": 40,
    "block_sizes": [1, 1],
    "d_model": 32,
    "n_head": 4,
    "d_head": 8,
    "d_inner": 32,
    "num_decoder_layers": 1,
}

HOOKED = {
    "luke": Case("luke", {**TEXT, "entity_vocab_size": 12, "entity_emb_size": 16}, entities),
    "squeezebert": Case("squeezebert", {**TEXT, "embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2}),
    "ibert": Case("ibert", TEXT),
    # Both take their softmax in float32, whatever the dtype.
    "funnel": Case("funnel", _FUNNEL, model="FunnelModel", dtype=torch.float32),
    "funnel, factorized": Case(
        "funnel", {**_FUNNEL, "attention_type": "factorized"}, model="FunnelModel", dtype=torch.float32
    ),
    "prophetnet": Case(
        "prophetnet",
        {
            "hidden_size": 32,
            "vocab_size": 40,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "ngram": 2,
            "num_buckets": 8,
            "max_position_embeddings": 32,
        },
        pairs,
        dtype=torch.float32,
    ),
    "sew-d": Case(
        "sew-d",
        {
            **SPEECH,
            "squeeze_factor": 2,
            "position_buckets": 8,
            "max_position_embeddings": 32,
            "pos_att_type": ["p2c", "c2p"],
        },
        wave,
    ),
    **same("mpnet megatron-bert rembert roformer visual_bert", {**TEXT, "visual_embedding_dim": 16}),
    "deberta": Case("deberta", {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta, talking heads": Case("deberta", {**TEXT, "relative_attention": True, "talking_head": True}),
    "deberta-v2": Case(
        "deberta-v2", {**TEXT, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]}
    ),
    "big_bird": Case("big_bird", {**TEXT, "attention_type": "original_full"}),
    "tapas": Case("tapas", _TAPAS, tables),
    "layoutlmv3": Case("layoutlmv3", _LAYOUT, boxes),
    "bros": Case(
        "bros",
        {**TEXT, "dim_bbox": 4},
        lambda: {**boxes(), "bbox": torch.rand(2, 12, 4, generator=generator()).double()},
    ),
    **same("flaubert xlm", _XLM),
    "falcon": Case("falcon", {**TEXT, "multi_query": True, "new_decoder_architecture": False}),
    "falcon, alibi": Case("falcon", {**TEXT, "alibi": True, "multi_query": False, "new_decoder_architecture": False}),
    "falcon, shared heads": Case("falcon", {**TEXT, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "gpt_neo": Case(
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 40,
            "window_size": 4,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    **same("gptj codegen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 40}),
    "bloom": Case("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40}),
    "mpt": Case("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 40, "max_seq_len": 32}),
    "gpt_neox_japanese": Case("gpt_neox_japanese", TEXT),
    "openai-gpt": Case(
        "openai-gpt",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 32},
    ),
    "imagegpt": Case("imagegpt", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 32}),
    "xglm": Case(
        "xglm",
        {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 32, "vocab_size": 40},
        dtype=torch.float32,
    ),
    **same("mvp led", {**SEQ2SEQ, "attention_window": 4, "max_encoder_position_embeddings": 64}, pairs),
    "fsmt": Case("fsmt", {**SEQ2SEQ, "src_vocab_size": 40, "tgt_vocab_size": 40, "langs": ["en", "de"]}, pairs),
    "longt5, local": Case("longt5", {**T5, "local_radius": 3, "encoder_attention_type": "local"}, pairs),
    "longt5, global": Case(
        "longt5",
        {**T5, "local_radius": 3, "global_block_size": 4, "encoder_attention_type": "transient-global"},
        pairs,
    ),
    "swinv2": Case("swinv2", WINDOWS, image),
    "hiera": Case(
        "hiera",
        {
            "embed_dim": 16,
            "image_size": [32, 32],
            "patch_size": [3, 3],
            "patch_stride": [2, 2],
            "patch_padding": [1, 1],
            "depths": [1, 1, 1],
            "num_heads": [2, 4, 4],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, True, False],
            "query_stride": [2, 2],
        },
        lambda: image(32),
    ),
    "data2vec-vision": Case("data2vec-vision", {**IMAGE, "use_relative_position_bias": True}, image),
    "levit": Case(
        "levit",
        {
            "image_size": 32,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [4, 4, 4],
            "mlp_ratio": [2, 2, 2],
            "attention_ratio": [2, 2, 2],
            "down_ops": [["Subsample", 4, 4, 4, 2, 2], ["Subsample", 4, 6, 4, 2, 2]],
        },
        lambda: image(32),
    ),
    **same("pvt pvt_v2 glpn", _PYRAMID, lambda: image(32)),
    "cvt": Case(
        "cvt",
        {
            "embed_dim": [8, 16, 32],
            "num_heads": [1, 2, 4],
            "depth": [1, 2, 3],
            "cls_token": [False, False, True],
            "patch_sizes": [3, 3, 3],
        },
        lambda: image(32),
    ),
    "mobilevit": Case(
        "mobilevit",
        {"hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 8, 8, 8, 8, 8, 16], "num_attention_heads": 4},
        lambda: image(32),
        jitter=0.5,
    ),
    "timesformer": Case("timesformer", {**IMAGE, "num_frames": 2}, frames),
    "maskformer-swin": Case("maskformer-swin", WINDOWS, image),
    "data2vec-vision, eager": Case("data2vec-vision", {**IMAGE, "attn_implementation": "eager"}, image),
    "bigbird_pegasus": Case("bigbird_pegasus", {**SEQ2SEQ, "attention_type": "original_full"}, pairs),
    "canine": Case(
        "canine",
        {
            **TEXT,
            "num_hash_functions": 2,
            "num_hash_buckets": 16,
            "downsampling_rate": 2,
            "upsampling_kernel_size": 2,
            "local_transformer_stride": 4,
        },
        dtype=torch.float32,
    ),
    "git": Case("git", {**TEXT, "vision_config": IMAGE}, captioned),
    "lxmert": Case(
        "lxmert",
        {**TEXT, "l_layers": 2, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 8, "visual_pos_dim": 4},
        lambda: {
            **tokens(),
            "visual_feats": torch.randn(2, 5, 8, dtype=torch.float64, generator=generator()),
            "visual_pos": torch.rand(2, 5, 4, dtype=torch.float64, generator=generator()),
        },
    ),
    "perceiver": Case(
        "perceiver",
        {
            "d_model": 16,
            "d_latents": 32,
            "num_latents": 5,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 2,
        },
        lambda: {"inputs": torch.randn(2, 9, 16, dtype=torch.float64, generator=generator())},
    ),
    "cpmant": Case(
        "cpmant",
        {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "dim_head": 8,
            "dim_ff": 32,
            "num_hidden_layers": 2,
            "vocab_size": 40,
            "prompt_types": 4,
            "prompt_length": 4,
            "segment_types": 32,
        },
        lambda: {"input_ids": tokens()["input_ids"]},
    ),
    "vitdet": Case("vitdet", {**IMAGE, "pretrain_image_size": 16, "use_relative_position_embeddings": True}, image),
    "donut-swin": Case("donut-swin", WINDOWS, image),
    "swin2sr": Case("swin2sr", {**WINDOWS, "patch_size": 1}, image),
    "wavlm": Case("wavlm", {**SPEECH, "num_buckets": 8, "max_bucket_distance": 16}, wave),
    "vilt": Case("vilt", {**TEXT, **IMAGE}, captioned),
    "blip": Case("blip", {**TOWERS, "image_text_hidden_size": 16}, captioned, "BlipForImageTextRetrieval"),
    "flava": Case(
        "flava",
        {"text_config": TEXT, "image_config": IMAGE, "multimodal_config": TEXT, "hidden_size": 32},
        captioned,
    ),
    "nystromformer": Case(
        "nystromformer",
        {**TEXT, "num_landmarks": 4, "segment_means_seq_len": 12, "conv_kernel_size": 3},
        lambda: {"input_ids": tokens()["input_ids"]},  # with landmarks it fails on padding, converted or not
    ),
    "xlnet": Case("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 32, "vocab_size": 40}),
    "longformer": Case("longformer", {**TEXT, "attention_window": [4, 4]}),
}
