"""Masked language modeling with crammed BERT: a quarter of the tokens is masked and predicted."""

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
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from ..._checks import check_integer, check_path
from ...config import check_choice
from ..data.byte_bpe import END, read_tokenizer, tokenizer_hash, train_byte_bpe
from ..data.masking import SHARE, MaskedWindows
from ..data.python_reference import load_python_reference
from ..data.tokenized import TokenizedRows, open_tokenized
from ..data.windows import RandomWindows, ScoredWindows
from ..models.crammed_bert import CrammedBert, CrammedBertConfig, save_crammed_bert
from ..models.weights_size import build_on_meta
from .corpora import tokenize
from .optimizer import OptimizerSettings
from .sizes import LARGEST_SIZE, MOST_LAYERS
from .task import Splits, Task
from .triangle import make_triangle
from .unused_options import check_unused

CORPORA = ("python-reference", "tokenized")
SPECIALS = (END, "<cls>", "<sep>", "<mask>", "<pad>")
MASK = "<mask>"
MASK_SEED = 0


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Task):
    """The ``masked-lm`` task. The metric is the cross-entropy of the masked tokens, in nats.

    The schedule is the published one: the learning rate rises from a quarter to the whole over three quarters of the
    steps and then falls to 0, counted in steps instead of by the wall clock, so that all arms take as many. The rows of
    a tokenized data set are trained on in their order, because the published one is a curriculum.

    Args:
        corpus: ``"python-reference"``, or ``"tokenized"``: a data set with a column ``input_ids`` in ``root``.
        root: that folder.
        tokenizer: the ``tokenizer.json`` of a tokenized data set; it must have ``<mask>``.
        vocab_size: tokens of the model; on the Python reference also of the tokenizer that is trained.
        context: tokens per example.
        width, layers, num_heads, feed_forward, dropout: of the model; see :class:`CrammedBertConfig`.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    corpus: str = "python-reference"
    root: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 32768
    context: int = 128
    width: int = 768
    layers: int = 16
    num_heads: int = 12
    feed_forward: int = 3072
    dropout: float = 0.0

    name: ClassVar[str] = "masked-lm"
    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("corpus", self.corpus, CORPORA)
        check_integer("context", self.context, minimum=2, maximum=LARGEST_SIZE)
        check_integer("layers", self.layers, minimum=1, maximum=MOST_LAYERS)
        for name in ("width", "num_heads", "feed_forward"):
            check_integer(name, getattr(self, name), minimum=1, maximum=LARGEST_SIZE)
        fewest = 256 + len(SPECIALS) if self.corpus == "python-reference" else 1
        check_integer("vocab_size", self.vocab_size, minimum=fewest, maximum=LARGEST_SIZE)
        check_path("root", self.root, "the folder of the tokenized data set")
        check_path("tokenizer", self.tokenizer, "a tokenizer.json")
        if self.corpus == "python-reference":
            check_unused(self, "root", "tokenizer", reason="corpus='python-reference' comes with Python")
        self._sizes()

    def build_model(self) -> nn.Module:
        """A new :class:`CrammedBert`.

        Raises:
            ValueError: its weights are larger than the memory.
        """
        sizes = self._sizes()
        what = f"vocab_size={self.vocab_size}, width={self.width}, layers={self.layers}"
        build_on_meta(lambda: CrammedBert(sizes), f"{what}, feed_forward={self.feed_forward}")
        return CrammedBert(sizes)

    def datasets(self) -> Splits:
        """Masked windows; those of validation and test are the same every time."""
        return Splits(
            train=self._masked("train", seed=None),
            validation=self._masked("validation", seed=MASK_SEED),
            test=self._masked("test", seed=MASK_SEED),
            shuffle=self.corpus != "tokenized",
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of the masked tokens."""
        tokens, positions, targets = batch
        return F.cross_entropy(model(tokens, positions=positions).flatten(0, 1).float(), targets.flatten())

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Mean cross-entropy and accuracy of every example, each of shape ``(B,)``."""
        tokens, positions, targets = batch
        logits = model(tokens, positions=positions).float().transpose(1, 2)
        right = (logits.argmax(dim=1) == targets).float().mean(dim=1)
        return {"loss": F.cross_entropy(logits, targets, reduction="none").mean(dim=1), "accuracy": right}

    def example_batch(self, size: int = 32) -> tuple[Tensor]:
        """The first ``size`` validation examples, ``(size, context)``."""
        check_integer("size", size, minimum=1)
        validation: Any = self.datasets().validation
        return (torch.stack([validation[index][0] for index in range(min(size, len(validation)))]),)

    def make_scheduler(self, optimizer: Optimizer, settings: OptimizerSettings) -> LambdaLR:
        """The published triangle, counted in steps."""
        return make_triangle(optimizer, settings, start=0.25, peak=0.75)

    def baselines(self) -> dict[str, float]:
        """Cross-entropy of the masked test tokens under their training frequencies, one added to each count."""
        if self.corpus != "python-reference":
            return {}
        stream, test = torch.from_numpy(self._streams["train"]), self.datasets().test
        counts = stream.bincount(minlength=self.vocab_size).double() + 1
        nats = -(counts / counts.sum()).log()
        per_example = [nats[test[index][2]].mean() for index in range(len(test))]  # type: ignore[arg-type]
        return {"token frequencies": math.fsum(map(float, per_example)) / len(per_example)}

    def describe_data(self) -> dict[str, Any]:
        """The corpus, its hash and its size."""
        own = {"hidden": SHARE, "tokenizer": tokenizer_hash(self._tokenizer)}
        if self.corpus == "tokenized":
            return {"corpus": "tokenized rows", "training rows": len(self._windows["train"]), **own}  # type: ignore[arg-type]
        return {**load_python_reference().describe(), "training tokens": len(self._streams["train"]), **own}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write sizes, weights and tokenizer; the task ``glue`` begins with such a folder."""
        save_crammed_bert(model, folder)  # type: ignore[arg-type]
        self._tokenizer.save(str(folder / "tokenizer.json"))

    def _masked(self, part: str, *, seed: int | None) -> MaskedWindows:
        mask = self._tokenizer.token_to_id(MASK)
        return MaskedWindows(self._windows[part], mask=mask, vocab_size=self.vocab_size, seed=seed)

    def _sizes(self) -> CrammedBertConfig:
        names = ("vocab_size", "width", "layers", "num_heads", "feed_forward", "dropout")
        return CrammedBertConfig(**{name: getattr(self, name) for name in names})

    @cached_property
    def _tokenizer(self) -> Any:
        if self.corpus == "python-reference":
            return train_byte_bpe(load_python_reference().train, vocab_size=self.vocab_size, specials=SPECIALS)
        if self.tokenizer is None:
            raise ValueError("tokenizer must be the tokenizer.json of the tokenized data set; got None")
        tokenizer = read_tokenizer(Path(self.tokenizer))
        if tokenizer.token_to_id(MASK) is None:
            raise ValueError(f"tokenizer {self.tokenizer!r} must have the token {MASK}")
        if tokenizer.get_vocab_size() > self.vocab_size:
            raise ValueError(
                f"vocab_size must be at least the {tokenizer.get_vocab_size()} tokens of {self.tokenizer}; "
                f"got {self.vocab_size}"
            )
        return tokenizer

    @cached_property
    def _streams(self) -> Mapping[str, Any]:
        text = load_python_reference()
        parts = ("train", "validation", "test")
        return {part: tokenize(getattr(text, part), self._tokenizer, ends=True) for part in parts}

    @cached_property
    def _windows(self) -> Mapping[str, Dataset[Any]]:
        if self.corpus == "python-reference":
            held_out = {part: ScoredWindows(self._streams[part], self.context) for part in ("validation", "test")}
            return {"train": RandomWindows(self._streams["train"], self.context), **held_out}
        if self.root is None:
            raise ValueError("root must be the folder of the tokenized data set; got None (--task-options root=FOLDER)")
        rows = open_tokenized(Path(self.root))
        parts = ("train", "validation", "test")
        return {
            part: TokenizedRows(rows, part, length=self.context, vocab_size=self.vocab_size, name=self.root)
            for part in parts
        }
