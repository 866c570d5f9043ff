"""Speech: speechbrain, torchaudio, conformer."""

from __future__ import annotations

import torch

from .vision import TOKENS, of

NNET = "speechbrain.nnet.attention"
LENGTHS = torch.tensor([1.0, 1.0])
RELATIVE = torch.randn(1, 31, 32)
TRIPLE = (TOKENS, TOKENS, TOKENS)

SPEECHBRAIN = {
    "ContentBasedAttention": of(
        f"{NNET}.ContentBasedAttention", (TOKENS, torch.tensor([16, 16]), torch.randn(2, 8)), 32, 8, 16, 16
    ),
    "LocationAwareAttention": of(
        f"{NNET}.LocationAwareAttention", (TOKENS, torch.tensor([16, 16]), torch.randn(2, 8)), 32, 8, 16, 16, 4, 3
    ),
    "KeyValueAttention": of(
        f"{NNET}.KeyValueAttention", (TOKENS, torch.tensor([16, 16]), torch.randn(2, 8)), 32, 8, 16, 16
    ),
    "RelPosMHAXL": of(f"{NNET}.RelPosMHAXL", (*TRIPLE, RELATIVE), 32, 2),
    "MultiheadAttention": of(f"{NNET}.MultiheadAttention", TRIPLE, 2, 32),
    "RoPEMHA": of(f"{NNET}.RoPEMHA", TRIPLE, 32, 2),
    "HyperMixing": of("speechbrain.nnet.hypermixing.HyperMixing", TRIPLE, 32, 32),
    "Conformer": of(
        "speechbrain.lobes.models.transformer.Conformer.ConformerEncoderLayer",
        {"x": TOKENS, "pos_embs": RELATIVE},
        32,
        32,
        2,
        3,
    ),
    "Branchformer": of(
        "speechbrain.lobes.models.transformer.Branchformer.BranchformerEncoderLayer",
        {"x": TOKENS, "pos_embs": RELATIVE},
        32,
        2,
        3,
        csgu_linear_units=32,
    ),
    "Transformer decoder": of(
        "speechbrain.lobes.models.transformer.Transformer.TransformerDecoderLayer", (TOKENS, TOKENS), 32, 2, 32
    ),
    "AttentiveStatisticsPooling": of(
        "speechbrain.lobes.models.ECAPA_TDNN.AttentiveStatisticsPooling", torch.randn(2, 32, 16), 32, 16
    ),
    "Tacotron2 attention": of(
        "speechbrain.lobes.models.Tacotron2.Attention",
        (torch.randn(2, 8), TOKENS, torch.randn(2, 16, 8), torch.randn(2, 2, 16), torch.zeros(2, 16, dtype=torch.bool)),
        8,
        32,
        8,
        4,
        3,
    ),
}

TORCHAUDIO = {
    "Conformer": of("torchaudio.models.Conformer", (TOKENS, torch.tensor([16, 16])), 32, 2, 32, 1, 3),
    "Emformer": of(
        "torchaudio.models.Emformer",
        (torch.randn(2, 20, 32), torch.tensor([20, 20])),
        32,
        2,
        32,
        1,
        4,
        right_context_length=4,
    ),
    "Emformer with memory": of(
        "torchaudio.models.Emformer",
        (torch.randn(2, 20, 32), torch.tensor([20, 20])),
        32,
        2,
        32,
        1,
        4,
        right_context_length=4,
        max_memory_size=2,
        left_context_length=4,
    ),
    "Tacotron2 attention": of(
        "torchaudio.models.tacotron2._Attention",
        (torch.randn(2, 8), TOKENS, torch.randn(2, 16, 8), torch.randn(2, 2, 16), torch.zeros(2, 16, dtype=torch.bool)),
        8,
        32,
        8,
        4,
        3,
    ),
    "HDemucs state": of("torchaudio.models._hdemucs._LocalState", torch.randn(2, 16, 12), 16),
    "wav2vec2": of("torchaudio.models.wav2vec2.components.SelfAttention", TOKENS, 32, 2),
    "WavLM": of("torchaudio.models.wav2vec2.wavlm_attention.WavLMSelfAttention", TOKENS, 32, 2),
    "DeepSpeech": of("torchaudio.models.DeepSpeech", torch.randn(2, 1, 16, 20), 20, 32, 4),
}

CONFORMER = {
    "Attention": of("conformer.conformer.Attention", TOKENS, 32, 2),
    "block": of("conformer.ConformerBlock", TOKENS, dim=32, heads=2, dim_head=16),
}

CASES = {"speechbrain": SPEECHBRAIN, "torchaudio": TORCHAUDIO, "conformer": CONFORMER}
