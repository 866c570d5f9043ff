"""Language and sequences: x-transformers, torchtune, litgpt, transformers and efficient attention."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import nn

from .vision import TOKENS, of

WORDS = torch.randint(0, 32, (1, 16))
HEADS = tuple(torch.randn(1, 2, 16, 8) for _ in range(3))


def _x(words: bool = True, **options: object) -> object:
    def build() -> tuple[nn.Module, object]:
        x = import_module("x_transformers")
        layers = x.Decoder(dim=32, depth=1, heads=2, attn_dim_head=16, **options)
        return x.TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=layers), WORDS

    return build


X_TRANSFORMERS = {
    "decoder": _x(),
    "flash": _x(attn_flash=True),
    "talking heads": _x(attn_pre_talking_heads=True, attn_post_talking_heads=True),
    "one head of keys": _x(attn_one_kv_head=True),
    "memory": _x(attn_num_mem_kv=4),
    "top-k": _x(attn_sparse_topk=4),
    "value residual": _x(add_value_residual=True),
    "integrate layers": _x(integrate_layers=True),
    "gated": _x(attn_gate_values=True),
}


def _litgpt(name: str, **options: object) -> object:
    def build() -> tuple[nn.Module, object]:
        litgpt = import_module("litgpt")
        config = litgpt.Config(
            name=name, block_size=16, vocab_size=32, padded_vocab_size=32, n_layer=1, n_head=2, n_embd=32, **options
        )
        return litgpt.GPT(config), WORDS

    return build


LITGPT = {
    "pythia": _litgpt("pythia", parallel_residual=True),
    "llama": _litgpt(
        "llama",
        parallel_residual=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=64,
        bias=False,
    ),
    "mixtral": _litgpt(
        "mixtral",
        parallel_residual=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMoE",
        intermediate_size=64,
        bias=False,
        n_expert=4,
        n_expert_per_token=2,
    ),
    "softcapping": _litgpt("gemma", attention_logit_softcapping=5.0),
}


def _torchtune(name: str, **options: object) -> object:
    return of(
        f"torchtune.models.{name}",
        WORDS,
        vocab_size=32,
        num_layers=1,
        num_heads=2,
        embed_dim=32,
        max_seq_len=16,
        **options,
    )


def _vision_encoder() -> tuple[nn.Module, object]:
    build = import_module("torchtune.models.clip").clip_vision_encoder
    model = build(embed_dim=32, num_layers=1, num_heads=2, tile_size=32, patch_size=8, max_num_tiles=1, in_channels=3)
    return model, (torch.randn(1, 1, 1, 3, 32, 32), torch.tensor([[[1, 1]]]))


TORCHTUNE = {
    "llama2": _torchtune("llama2.llama2", num_kv_heads=2),
    "llama3": _torchtune("llama3.llama3", num_kv_heads=1),
    "gemma2": of(
        "torchtune.models.gemma2.gemma2",
        WORDS,
        vocab_size=32,
        num_layers=1,
        num_heads=2,
        head_dim=16,
        num_kv_heads=1,
        embed_dim=32,
        intermediate_dim=64,
        max_seq_len=16,
        sliding_window_size=8,
    ),
    "clip": _vision_encoder,
}


def _transformers(name: str, inputs: object = None, **options: object) -> object:
    def build() -> tuple[nn.Module, object]:
        library = import_module("transformers")
        small = {
            "vocab_size": 32,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "pad_token_id": 0,
        }
        config = library.AutoConfig.for_model(name, **(small | options))
        return library.AutoModel.from_config(config, attn_implementation="eager"), inputs or {"input_ids": WORDS}

    return build


TRANSFORMERS = {
    "bert": _transformers("bert"),
    "llama": _transformers("llama", num_key_value_heads=1),
    "mixtral": _transformers("mixtral", num_key_value_heads=1, num_local_experts=4),
    "gpt_oss": _transformers("gpt_oss", num_key_value_heads=1, num_local_experts=4, head_dim=16),
    "gpt2": _transformers("gpt2", n_embd=32, n_layer=1, n_head=2),
    "deberta-v2": _transformers("deberta-v2"),
    "t5": _transformers(
        "t5", {"input_ids": WORDS, "decoder_input_ids": WORDS}, d_model=32, d_kv=16, num_layers=1, num_heads=2, d_ff=64
    ),
    "xlm": _transformers("xlm", emb_dim=32, n_layers=1, n_heads=2),
}


EFFICIENT = {
    "performer-pytorch": {
        "softmax features": of("performer_pytorch.SelfAttention", TOKENS, 32, heads=2, dim_head=16),
        "local heads": of(
            "performer_pytorch.SelfAttention", TOKENS, 32, heads=2, dim_head=16, local_heads=1, local_window_size=4
        ),
    },
    "linformer": {"self": of("linformer.LinformerSelfAttention", TOKENS, 32, 16, k=4, heads=2)},
    "reformer-pytorch": {
        "LSH": of("reformer_pytorch.LSHSelfAttention", TOKENS, 32, heads=2, bucket_size=4, n_hashes=2),
        "full": of("reformer_pytorch.LSHSelfAttention", TOKENS, 32, heads=2, bucket_size=4, use_full_attn=True),
    },
    "local-attention": {
        "LocalAttention": of("local_attention.LocalAttention", HEADS, 4, dim=8),
        "transformer": of(
            "local_attention.LocalTransformer",
            WORDS,
            num_tokens=32,
            max_seq_len=16,
            dim=32,
            depth=1,
            heads=2,
            dim_head=16,
            local_attn_window_size=4,
        ),
    },
    "nystrom-attention": {"self": of("nystrom_attention.NystromAttention", TOKENS, 32, heads=2, num_landmarks=4)},
    "memory-efficient-attention-pytorch": {
        "plain": of("memory_efficient_attention_pytorch.Attention", TOKENS, dim=32, heads=2),
        "tiles": of(
            "memory_efficient_attention_pytorch.Attention",
            TOKENS,
            dim=32,
            heads=2,
            memory_efficient=True,
            q_bucket_size=4,
            k_bucket_size=4,
        ),
        "flash": of(
            "memory_efficient_attention_pytorch.flash_attention.FlashAttention",
            TOKENS,
            dim=32,
            heads=2,
            q_bucket_size=4,
            k_bucket_size=4,
        ),
    },
    "perceiver-pytorch": {
        "Perceiver": of(
            "perceiver_pytorch.Perceiver",
            torch.randn(1, 8, 8, 3),
            num_freq_bands=2,
            depth=1,
            max_freq=4,
            num_latents=4,
            latent_dim=16,
            latent_heads=2,
            num_classes=4,
        ),
    },
    "tab-transformer-pytorch": {
        "TabTransformer": of(
            "tab_transformer_pytorch.TabTransformer",
            (torch.randint(0, 3, (2, 2)), torch.randn(2, 3)),
            categories=(3, 3),
            num_continuous=3,
            dim=16,
            depth=1,
            heads=2,
            dim_out=1,
            mlp_act=nn.ReLU(),
        ),
        "FTTransformer": of(
            "tab_transformer_pytorch.FTTransformer",
            (torch.randint(0, 3, (2, 2)), torch.randn(2, 3)),
            categories=(3, 3),
            num_continuous=3,
            dim=16,
            depth=1,
            heads=2,
            dim_out=1,
        ),
    },
    "pytorch-tabnet": {
        "TabNet": of(
            "pytorch_tabnet.tab_network.TabNet",
            torch.randn(8, 6),
            6,
            2,
            n_d=4,
            n_a=4,
            n_steps=2,
            group_attention_matrix=torch.eye(6),
        ),
    },
}

CASES = {
    "x-transformers": X_TRANSFORMERS,
    "litgpt": LITGPT,
    "torchtune": TORCHTUNE,
    "transformers": TRANSFORMERS,
    **EFFICIENT,
}
