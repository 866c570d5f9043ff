"""Causal language modeling: GPT-2 from transformers, with random weights; the metric is bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..._checks import check_integer, check_number, check_path, naming_source
from ..._extras import require
from ...config import check_choice
from ..data.byte_bpe import END, bytes_of_tokens, save_tokenizer
from ..data.ngram import KneserNey
from ..data.python_reference import load_python_reference
from ..data.windows import NOT_SCORED, RandomWindows, ScoredWindows
from ..models.weights_size import build_on_meta
from .corpora import TokenCorpus, open_python_reference, open_tiny_stories
from .sizes import LARGEST_SIZE, MOST_LAYERS
from .task import Splits, Task
from .unused_options import check_unused

CORPORA = ("python-reference", "tiny-stories")
SAMPLE_TOKENS = 120
SAMPLE_SEED = 0
ORDERS = (3, 5)


@dataclass(frozen=True, kw_only=True)
class CausalLM(Task):
    """The ``causal-lm`` task: predict the next token. The metric is bits per byte, document ends included.

    Args:
        corpus: ``"python-reference"`` (inside every Python) or ``"tiny-stories"`` (in ``root``).
        root: the folder with TinyStories; see :func:`preconditioned_attention.lab.data.tiny_stories.find_stories`.
        cache: a folder for the tokens of ``tiny-stories``; None: ``root`` itself.
        tokenizer: the path of a byte-level ``tokenizer.json``, or a name on the hub; None trains one with
            ``vocab_size`` tokens on the training text (only on the Python reference).
        vocab_size: tokens of the tokenizer that is trained.
        end_tokens: whether each document is followed by ``<|endoftext|>``.
        context: tokens that the model sees at most.
        n_layer, n_head, n_embd: of GPT-2.
        dropout: of embeddings, attention weights and both projections.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    corpus: str = "python-reference"
    root: str | None = None
    cache: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 1024
    end_tokens: bool = True
    context: int = 128
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.1

    name: ClassVar[str] = "causal-lm"
    metric: ClassVar[str] = "bits per byte"
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("corpus", self.corpus, CORPORA)
        for name, minimum in (("vocab_size", 257), ("context", 2), ("n_head", 1), ("n_embd", 1)):
            check_integer(name, getattr(self, name), minimum=minimum, maximum=LARGEST_SIZE)
        check_integer("n_layer", self.n_layer, minimum=1, maximum=MOST_LAYERS)
        check_number("dropout", self.dropout, below=1.0)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head; got n_embd={self.n_embd}, n_head={self.n_head}")
        self._check_corpus()

    def _check_corpus(self) -> None:
        """Raise if an option is missing, or would be ignored."""
        check_path("root", self.root, "the folder with TinyStories")
        check_path("cache", self.cache, "a folder")
        check_path("tokenizer", self.tokenizer, "a tokenizer.json, or a name on the hub")
        if self.corpus == "tiny-stories" and self.tokenizer is None:
            raise ValueError("tokenizer must be given for corpus='tiny-stories': its published runs use GPT-2's")
        if self.corpus == "python-reference":
            check_unused(self, "root", "cache", reason="corpus='python-reference' comes with Python")
        if self.tokenizer is not None:
            check_unused(self, "vocab_size", reason="it is the size of a tokenizer that is trained, and one is given")

    def build_model(self) -> nn.Module:
        """A new ``GPT2LMHeadModel``.

        Raises:
            ValueError: its weights are larger than the memory.
        """
        transformers = require("transformers", extra="language")
        end = self._data.tokenizer.token_to_id(END)
        config = transformers.GPT2Config(
            vocab_size=self._data.tokenizer.get_vocab_size(),
            n_positions=self.context,
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            n_head=self.n_head,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            bos_token_id=end,
            eos_token_id=end,
        )
        what = f"context={self.context}, n_embd={self.n_embd}, n_layer={self.n_layer}, vocab_size={config.vocab_size}"
        build_on_meta(lambda: transformers.GPT2LMHeadModel(config), what)
        return transformers.GPT2LMHeadModel(config)

    def datasets(self) -> Splits:
        """Windows of ``context`` tokens and the tokens that follow: random ones for training, each once otherwise."""
        data = self._data
        with naming_source(f"corpus {self.corpus!r}" + (f" in {self.root}" if self.root else "")):
            return Splits(
                train=RandomWindows(data.train, self.context),
                validation=ScoredWindows(data.validation, self.context),
                test=ScoredWindows(data.test, self.context),
            )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy per token, in nats."""
        inputs, targets = batch
        logits = model(input_ids=inputs, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NOT_SCORED)

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, list[Any]]:
        """Per window the summed cross-entropy of its scored tokens, their number, and their bytes."""
        inputs, targets = batch
        logits = model(input_ids=inputs, use_cache=False).logits.transpose(1, 2)
        nats = F.cross_entropy(logits.float(), targets, ignore_index=NOT_SCORED, reduction="none")
        scored = targets != NOT_SCORED
        sizes = self._bytes.to(targets.device)[targets.clamp(min=0)] * scored
        totals = {"nats": nats.sum(dim=1), "tokens": scored.sum(dim=1), "bytes": sizes.sum(dim=1)}
        return {name: values.tolist() for name, values in totals.items()}

    def score(self, dataset: Dataset[Any], values: Mapping[str, list[Any]]) -> dict[str, float]:
        """Mean nats per token, perplexity, and bits per byte, from the totals of the split."""
        nats, tokens, size = (math.fsum(values[name]) for name in ("nats", "tokens", "bytes"))
        return {"loss": nats / tokens, "perplexity": math.exp(nats / tokens), self.metric: nats / math.log(2) / size}

    def example_batch(self, size: int = 32) -> tuple[Tensor]:
        """The first ``size`` validation windows, ``(size, context)``."""
        check_integer("size", size, minimum=1)
        windows = ScoredWindows(self._data.validation, self.context)
        return (torch.stack([windows[index][0] for index in range(min(size, len(windows)))]),)

    def baselines(self) -> dict[str, float]:
        """Bits per byte on the test text of byte-level Kneser-Ney models of the same training text.

        Only on the Python reference, because they are kept in memory.
        """
        if self.corpus != "python-reference":
            return {}
        text = load_python_reference()
        return {
            f"Kneser-Ney {n}-gram of bytes": KneserNey(text.train, order=n).bits_per_byte(text.test) for n in ORDERS
        }

    def describe_data(self) -> dict[str, Any]:
        """The corpus, its hash and its size."""
        return dict(self._data.description)

    @torch.no_grad()
    def samples(self, model: nn.Module) -> dict[str, str]:
        """Texts sampled with a fixed seed, without a prompt and from the beginning of a test document."""
        tokenizer, device = self._data.tokenizer, next(model.parameters()).device
        generate: Any = model.generate
        written = {}
        for name, prompt in self._prompts().items():
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(SAMPLE_SEED)
                tokens = generate(
                    torch.tensor([prompt], device=device),
                    do_sample=True,
                    max_new_tokens=min(SAMPLE_TOKENS, self.context - len(prompt)),
                    pad_token_id=prompt[0],
                )
            written[name] = tokenizer.decode(tokens[0].tolist())
        return written

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write model and tokenizer in the form that ``from_pretrained`` of transformers reads."""
        model.save_pretrained(str(folder))  # type: ignore[operator]
        save_tokenizer(self._data.tokenizer, folder)

    def _prompts(self) -> dict[str, list[int]]:
        """Prompts by name; the first token is the end of the document before."""
        end = self._data.tokenizer.token_to_id(END)
        beginning = [end, *self._data.test[1 : 1 + self.context // 8].tolist()]
        return {"from nothing": [end], "from the beginning of the test text": beginning}

    @cached_property
    def _data(self) -> TokenCorpus:
        if self.corpus == "python-reference":
            return open_python_reference(tokenizer=self.tokenizer, vocab_size=self.vocab_size, ends=self.end_tokens)
        if self.root is None:
            raise ValueError("root must be the folder that holds TinyStories; got None (--task-options root=FOLDER)")
        cache = Path(self.root if self.cache is None else self.cache)
        return open_tiny_stories(Path(self.root), str(self.tokenizer), cache=cache, ends=self.end_tokens)

    @cached_property
    def _bytes(self) -> Tensor:
        return bytes_of_tokens(self._data.tokenizer)
