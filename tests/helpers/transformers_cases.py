"""Tiny random transformers models of many architectures, with inputs: two layers, at most 32 wide, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from preconditioned_attention import precondition_, restore_
from preconditioned_attention.conversion.registry import find_adapter
from tests.helpers.explicit import relative_error
from tests.helpers.oracle import jitter_, normalizing_inside

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHARED = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {
    **SHARED,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 40,
    "decoder_start_token_id": 0,
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "conv_dim": (16, 16),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "apply_spec_augment": False,
}
WINDOWS = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "num_channels": 3,
}


def generator() -> torch.Generator:
    """Seeded, so that inputs are the same every time."""
    return torch.Generator().manual_seed(1)


def tokens() -> dict[str, Tensor]:
    """Two sequences of twelve tokens; the second ends in four padding tokens."""
    ids = torch.randint(3, 40, (2, 12), generator=generator())
    mask = torch.ones(2, 12, dtype=torch.int64)
    ids[1, 8:] = 0
    mask[1, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def pairs() -> dict[str, Tensor]:
    """Padded input and a target."""
    return {**tokens(), "decoder_input_ids": torch.randint(3, 40, (2, 7), generator=generator())}


def image(side: int = 16, channels: int = 3) -> dict[str, Tensor]:
    """Two images."""
    return {"pixel_values": torch.randn(2, channels, side, side, dtype=torch.float64, generator=generator())}


def frames() -> dict[str, Tensor]:
    """Two videos of two frames."""
    return {"pixel_values": torch.randn(2, 2, 3, 16, 16, dtype=torch.float64, generator=generator())}


def wave() -> dict[str, Tensor]:
    """Two sounds; the second is padded."""
    mask = torch.ones(2, 320, dtype=torch.int64)
    mask[1, 200:] = 0
    return {
        "input_values": torch.randn(2, 320, dtype=torch.float64, generator=generator()) * mask,
        "attention_mask": mask,
    }


def captioned() -> dict[str, Tensor]:
    """Two images and two padded texts."""
    return {**tokens(), **image()}


@dataclass(frozen=True)
class Case:
    """One architecture: its model type, the changes to its configuration, and what it is fed.

    In float64 unless its own code fails there (eager masks that overflow in a float32 softmax).
    """

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Tensor]] = tokens
    model: str = "AutoModel"
    dtype: torch.dtype = torch.float64
    jitter: float = 0.05

    def build(self) -> nn.Module:
        """The model in evaluation; every weight moved, so that nothing starts at zero; no dropout."""
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(self.model_type, **self.config)
        model = getattr(transformers, self.model)
        model = model.from_config(config) if self.model.startswith("Auto") else model(config)
        if "num_experts_per_tok" in self.config:  # their grouped product is not for float64
            model.set_experts_implementation("eager")
        jitter_(model, self.jitter)
        for module in model.modules():
            for holder in (module, getattr(module, "config", None)):
                for name in [n for n, v in vars(holder or object).items() if "drop" in n and isinstance(v, float)]:
                    setattr(holder, name, 0.0)
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        return model.to(self.dtype).eval()


def same(names: str, config: dict[str, Any], inputs: Callable[[], dict[str, Tensor]] = tokens) -> dict[str, Case]:
    """One case for each model type, all alike."""
    return {name: Case(name, config, inputs) for name in names.split()}


# Through the attention interface.
ENCODERS = same(
    "bert roberta xlm-roberta electra camembert ernie roberta-prelayernorm data2vec-text xmod mobilebert",
    {**TEXT, "embedding_size": 32, "languages": ["en_XX"], "default_language": "en_XX", "intra_bottleneck_size": 32},
) | {
    "albert": Case("albert", {**TEXT, "embedding_size": 16}),
    "distilbert": Case("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "vocab_size": 40}),
    "modernbert": Case("modernbert", {**TEXT, "local_attention": 4, "global_attn_every_n_layers": 2}),
    "esm": Case("esm", {**TEXT, "position_embedding_type": "rotary", "mask_token_id": 3}),
    "t5 encoder": Case("t5", T5, model="T5EncoderModel"),
}
DECODERS = same(
    "llama mistral qwen2 qwen3 gemma gemma3_text olmo olmo2 granite cohere cohere2 starcoder2 glm glm4 helium "
    "smollm3 ministral ernie4_5 exaone4 seed_oss arcee hunyuan_v1_dense nemotron",
    {**SHARED, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4, "use_sliding_window": True},
) | {
    **same("mixtral qwen2_moe qwen3_moe olmoe phimoe", EXPERTS),
    "phi": Case("phi", {**TEXT, "partial_rotary_factor": 0.5}),
    "phi3": Case("phi3", SHARED),
    "stablelm": Case("stablelm", SHARED),
    "gemma2": Case("gemma2", SHARED, dtype=torch.float32),
    "bitnet": Case("bitnet", SHARED),
    "gpt2": Case("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 32}),
    "gpt_bigcode": Case("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 32}),
    "gpt_neox": Case("gpt_neox", TEXT),
    "gpt_oss": Case("gpt_oss", EXPERTS, dtype=torch.float32),
    "opt": Case("opt", {**TEXT, "ffn_dim": 32, "word_embed_proj_dim": 32}),
    "biogpt": Case("biogpt", TEXT),
    "deepseek_v3": Case(
        "deepseek_v3",
        {
            **TEXT,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 6,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
        },
    ),
    "qwen3_next": Case(
        "qwen3_next",
        {
            **EXPERTS,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "shared_expert_intermediate_size": 16,
        },
    ),
}
PAIRS = same("bart mbart pegasus m2m_100 marian blenderbot blenderbot-small plbart", SEQ2SEQ, pairs) | {
    **same("t5 mt5 umt5", T5, pairs),
    "whisper": Case(
        "whisper",
        {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16},
        lambda: {
            "input_features": torch.randn(2, 8, 20, dtype=torch.float64, generator=generator()),
            "decoder_input_ids": pairs()["decoder_input_ids"],
        },
    ),
}
VISION = same("vit deit beit dinov2 dinov2_with_registers dinov3_vit ijepa vit_msn", IMAGE, image) | {
    "yolos": Case("yolos", {**IMAGE, "image_size": [16, 16], "num_detection_tokens": 3}, image),
    "swin": Case("swin", WINDOWS, image),
    "videomae": Case("videomae", {**IMAGE, "num_frames": 2, "tubelet_size": 2}, frames),
    "vivit": Case("vivit", {**IMAGE, "num_frames": 2, "tubelet_size": [2, 4, 4]}, frames),
    "segformer": Case(
        "segformer",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 16, 32],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
            "sr_ratios": [4, 2, 1, 1],
        },
        lambda: image(32),
    ),
    "siglip_vision_model": Case("siglip_vision_model", IMAGE, image),
    "clip_vision_model": Case("clip_vision_model", IMAGE, image),
}
AUDIO = same("wav2vec2 hubert unispeech unispeech-sat data2vec-audio sew", {**SPEECH, "squeeze_factor": 2}, wave) | {
    "audio-spectrogram-transformer": Case(
        "audio-spectrogram-transformer",
        {**IMAGE, "num_mel_bins": 8, "max_length": 16, "frequency_stride": 4, "time_stride": 4},
        lambda: {"input_values": torch.randn(2, 16, 8, dtype=torch.float64, generator=generator())},
    ),
}
TOWERS = {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16}
MULTIMODAL = same("clip siglip chinese_clip altclip clipseg", TOWERS, captioned) | {
    "owlvit": Case("owlvit", TOWERS, captioned),
    "llava": Case(
        "llava",
        {
            "text_config": {**SHARED, "model_type": "llama"},
            "image_token_index": 39,
            "image_seq_length": 16,
            "vision_config": {**IMAGE, "model_type": "clip_vision_model"},
        },
        lambda: {
            "input_ids": torch.cat([torch.full((2, 16), 39), tokens()["input_ids"].clamp(max=38)], dim=1),
            "attention_mask": torch.cat([torch.ones(2, 16, dtype=torch.int64), tokens()["attention_mask"]], dim=1),
            **image(),
        },
    ),
}

DISPATCHING = ENCODERS | DECODERS | PAIRS | VISION | AUDIO | MULTIMODAL


def outputs(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """Every number that the model gives back for ``given``, with the same random draws each time."""
    torch.manual_seed(2)
    leaves = tree_leaves(list(model(**given, return_dict=True).values()))
    return torch.cat([x.flatten().double() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()])


def check(case: Case, *, train: bool = False) -> None:
    """Hold the converted model against one that normalizes inside every attention, and restore it."""
    model, given = case.build().train(train), case.inputs()
    plain = outputs(model, given)
    # What torch's own function hides inside is proved in test_torch_nn.
    report = precondition_(model, strict=True, filter_fn=lambda module, _: type(module) is not nn.MultiheadAttention)
    paths = [entry.path for entry in report.converted]
    out = outputs(model, given)
    restore_(model)
    classes = {type(model.get_submodule(path)) for path in paths}
    with normalizing_inside(model, *classes) as widths:
        expected = outputs(model, given)
    assert len(widths) >= len(paths) > 0
    assert {entry.head_dim for entry in report.converted} >= set(widths)
    assert relative_error(out, expected) <= (1e-10 if case.dtype == torch.float64 else 1e-5)
    assert relative_error(plain, expected) > 1e-3
    if not train:
        assert torch.equal(outputs(model, given), plain)


def first_attention(model: nn.Module) -> nn.Module:
    """The first module of ``model`` that has an adapter."""
    return next(module for module in model.modules() if find_adapter(module))
