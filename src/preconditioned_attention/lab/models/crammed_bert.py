"""Crammed BERT: an encoder that is pretrained in a day on one GPU.

Source: J. Geiping and T. Goldstein, Cramming: Training a Language Model on a Single GPU in One Day, ICML 2023, arXiv
2212.14034, and its published configuration ``crammed-bert``: pre-norm layers without biases in linear maps, a
feed-forward network gated by GELU, scaled sinusoidal positions, and a decoder that shares the embedding's weights.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._checks import check_integer, check_known, check_number, naming_source
from ..._extras import require
from ..._files import open_file, publish, read_json, write_atomically
from ...config import PreconditionConfig
from ...layers import MultiheadAttention, Preconditioner
from ...selection import split_options

NORM_EPS = 1e-12
INITIAL_STD = 0.02
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_MARK = ".preconditioner.requires_preconditioned_attention"
MODEL_TYPE = "crammed-bert"


@dataclass(frozen=True, kw_only=True)
class CrammedBertConfig:
    """The sizes; the defaults are the published ones, 119,589,889 parameters.

    Args:
        vocab_size: tokens.
        width: of the hidden states; a multiple of ``num_heads``, and even.
        layers: how many.
        num_heads: heads per layer.
        feed_forward: width of the feed-forward network before gating halves it; even.
        dropout: of embeddings, attention weights and each layer's two branches. Pretraining published it as off.

    Raises:
        TypeError, ValueError: a size that cannot be; the message names it.
    """

    vocab_size: int = 32768
    width: int = 768
    layers: int = 16
    num_heads: int = 12
    feed_forward: int = 3072
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "num_heads", "feed_forward"):
            check_integer(name, getattr(self, name), minimum=1)
        check_number("dropout", self.dropout, below=1.0)
        for name in ("width", "feed_forward"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name} must be even; got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads; got {self.width} and {self.num_heads}")


class CrammedBert(nn.Module):
    """The encoder with its decoder for masked tokens.

    Args:
        config: the sizes.
        precondition: the method's options; None: plain attention, which `precondition_` can convert.
    """

    def __init__(self, config: CrammedBertConfig, *, precondition: PreconditionConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.word_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_scale = nn.Parameter(torch.tensor([config.width**-0.5]))
        self.embedding_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.embedding_drop = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(CrammedBertLayer(config, precondition) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Logits over the vocabulary.

        Args:
            input_ids: ``(B, N)``.
            attention_mask: ``(B, N)``, True or 1 where there is a token; None: everywhere.
            positions: ``(B, K)``, the positions of the logits; None: all.

        Returns:
            ``(B, K, vocab_size)``, or ``(B, N, vocab_size)``.
        """
        hidden = self.encode(input_ids, attention_mask)
        if positions is not None:
            hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        return F.linear(hidden, self.word_embedding.weight)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, ``(B, N, width)``."""
        words = self.word_embedding(input_ids)
        positions = self.position_scale * sinusoids(input_ids.shape[1], words.shape[-1], words)
        hidden = self.embedding_drop(self.embedding_norm(words + positions))
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.norm(hidden)


class CrammedBertLayer(nn.Module):
    """`x + Attention(norm(x))`, then `x + FeedForward(norm(x))`."""

    def __init__(self, config: CrammedBertConfig, precondition: PreconditionConfig | None) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attention = MultiheadAttention(
            config.width,
            config.num_heads,
            qkv_bias=False,
            proj_bias=False,
            attn_drop=config.dropout,
            proj_drop=config.dropout,
            precondition=precondition,
        )
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.feed_forward_in = nn.Linear(config.width, config.feed_forward, bias=False)
        self.feed_forward_out = nn.Linear(config.feed_forward // 2, config.width, bias=False)
        self.feed_forward_drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, attn_mask: Tensor | None) -> Tensor:
        """``(B, N, width)`` to the same; ``attn_mask`` broadcasts to ``(B, H, N, N)``."""
        x = x + self.attention(self.attention_norm(x), attn_mask=attn_mask)
        value, gate = self.feed_forward_in(self.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + self.feed_forward_drop(self.feed_forward_out(value * F.gelu(gate)))


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Sines, then cosines, of every position at ``width / 2`` frequencies from 1 down to about 1/10000.

    Source: A. Vaswani et al., Attention Is All You Need, 2017. ``(length, width)`` with ``like``'s dtype and device;
    angles are at least in float32.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    positions = torch.arange(length, device=like.device, dtype=dtype)
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=dtype) / width)
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)


def save_crammed_bert(model: CrammedBert, folder: Path) -> None:
    """Write sizes and weights, ``config.json`` and ``model.safetensors``, into a folder.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{WEIGHTS_FILE}.writing"
    require("safetensors.torch", extra="train").save_model(model, str(temporary))
    publish(temporary, folder / WEIGHTS_FILE)
    own = [module for module in model.modules() if isinstance(module, Preconditioner)]
    found = [preconditioner for preconditioner in own if preconditioner.origin != "probe"]
    content = {
        "model_type": MODEL_TYPE,
        "sizes": dataclasses.asdict(model.config),
        "preconditioned_attention": found[0].config.to_dict() if found else None,
        "marker": all(preconditioner.marked for preconditioner in found),
    }
    write_atomically(folder / CONFIG_FILE, json.dumps(content, indent=2) + "\n")


def load_crammed_bert(folder: Path, *, dropout: float = 0.0) -> CrammedBert:
    """The model that :func:`save_crammed_bert` wrote, preconditioned if it was, with another dropout.

    Raises:
        OSError: it cannot be read. ValueError: the folder holds another model, or weights that do not fit the sizes or
            were trained plain where config.json says preconditioned.
    """
    path = folder / CONFIG_FILE
    content = _read_config(path)
    options = content["preconditioned_attention"]
    with naming_source(str(path)):
        precondition = None if options is None else split_options(options)[0]
        model = CrammedBert(CrammedBertConfig(**{**content["sizes"], "dropout": dropout}), precondition=precondition)
    weights = _read_weights(folder / WEIGHTS_FILE)
    if options is not None and content.get("marker", True) and not any(key.endswith(_MARK) for key in weights):
        raise ValueError(
            f"{path} says that the model is preconditioned, and the weights beside it have no mark of it, so they were "
            "trained plain; the weights decide: set its preconditioned_attention to null"
        )
    try:
        with warnings.catch_warnings():
            if not content.get("marker", True):  # the configuration says what the weights cannot
                warnings.filterwarnings("ignore", message="this checkpoint does not say")
            model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit the sizes in {path}: {error}") from error
    return model


def _read_config(path: Path) -> dict[str, Any]:
    """The sizes and the options of the preconditioning that :func:`save_crammed_bert` wrote."""
    content = read_json(path)
    if content.get("model_type") != MODEL_TYPE:
        raise ValueError(f"{path} must describe a crammed BERT (model_type {MODEL_TYPE!r}), as its export writes it")
    sizes, options = content.get("sizes"), content.get("preconditioned_attention", ())
    if not isinstance(sizes, dict) or not (options is None or isinstance(options, dict)):
        raise ValueError(f"{path} must hold sizes, and preconditioned_attention with its options or null")
    check_known(f"size in {path}:", sizes, [field.name for field in dataclasses.fields(CrammedBertConfig)])
    return content


def _read_weights(path: Path) -> dict[str, Tensor]:
    open_file(path).close()  # a message of its own if it is missing, a folder or a pipe
    try:
        return require("safetensors.torch", extra="train").load_file(str(path))
    except Exception as error:  # safetensors has an error of its own
        raise OSError(f"{path} cannot be read as weights: {error}; export the run again") from error
