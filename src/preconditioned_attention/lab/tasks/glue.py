"""GLUE with crammed BERT: fine-tune a pretrained encoder on one of eight tasks, as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..._checks import check_integer, check_known, check_number, check_path
from ..data.byte_bpe import read_tokenizer
from ..data.glue import GLUE, GlueExample, GlueTask, read_glue
from ..models.crammed_bert import CrammedBert, load_crammed_bert
from .glue_metrics import METRICS
from .sizes import LARGEST_SIZE
from .task import Splits, Task

HEAD_WIDTH = 1024
HEAD_DROPOUT = 0.1


@dataclass(frozen=True, kw_only=True)
class Glue(Task):
    """The ``glue`` task.

    Validation and test are both the dev split, for the labels of GLUE's test splits are not public; with MNLI test is
    the mismatched dev split. Published settings are fixed beforehand, so nothing is selected on them.

    Args:
        task: a name in :data:`preconditioned_attention.lab.data.glue.GLUE`.
        root: the folder with GLUE; see :func:`preconditioned_attention.lab.data.glue.read_glue`.
        pretrained: a folder that ``precond export`` wrote for a run of ``masked-lm``. It decides whether the encoder
            is preconditioned, so a run of a preconditioned one is the arm ``plain``.
        context: the longest pair of texts in tokens; longer ones are cut at the end of the longer text.
        dropout: in the encoder.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    task: str
    root: str | None = None
    pretrained: str = ""
    context: int = 128
    dropout: float = 0.1

    name: ClassVar[str] = "glue"
    higher_is_better: ClassVar[bool] = True
    decay_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_known("task of GLUE", [self.task], GLUE)
        check_path("root", self.root, "the folder that holds GLUE")
        if not isinstance(self.pretrained, str):
            raise TypeError(f"pretrained must be the path of a folder; got {self.pretrained!r}")
        check_integer("context", self.context, minimum=8, maximum=LARGEST_SIZE)
        check_number("dropout", self.dropout, below=1.0)

    @property
    def metric(self) -> str:
        """The task's metric in GLUE's average."""
        return self._own.metric

    def build_model(self) -> nn.Module:
        """The pretrained encoder with a new head."""
        if not self.pretrained:
            raise ValueError(
                "pretrained must be the folder of an exported masked-lm run (--task-options pretrained=FOLDER)"
            )
        encoder = load_crammed_bert(Path(self.pretrained), dropout=self.dropout)
        return GlueModel(encoder, outputs=len(self._own.classes) or 1, padding=self._special("<pad>"))

    def datasets(self) -> Splits:
        """Tokens and labels; batches are padded to their longest pair."""
        train, *held_out = (_Pairs(read_glue(self._root, self.task, split), self._encode) for split in self._own.splits)
        return Splits(train=train, validation=held_out[0], test=held_out[-1], collate=self._collate)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy, or mean squared error of scores."""
        return self._losses(model(batch[0]), batch[1]).mean()

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor | list[Any]]:
        """The loss of every pair, and prediction and label for :meth:`score`."""
        outputs = model(batch[0])
        predictions = outputs.argmax(dim=-1) if self._own.classes else outputs[:, 0]
        return {
            "loss": self._losses(outputs, batch[1]),
            "predictions": predictions.float().tolist(),
            "labels": batch[1].tolist(),
        }

    def score(self, dataset: Dataset[Any], values: Mapping[str, list[Any]]) -> dict[str, float]:
        """The task's metric."""
        return {self.metric: METRICS[self.metric](values["predictions"], values["labels"])}

    def example_batch(self, size: int = 32) -> tuple[Tensor]:
        """The tokens of the first ``size`` dev pairs."""
        check_integer("size", size, minimum=1)
        validation: Any = self.datasets().validation
        return (self._collate([validation[index] for index in range(min(size, len(validation)))])[0],)

    @property
    def _own(self) -> GlueTask:
        return GLUE[self.task]

    @property
    def _root(self) -> Path:
        if self.root is None:
            raise ValueError("root must be the folder that holds GLUE; got None (--task-options root=FOLDER)")
        return Path(self.root)

    def _losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self._own.classes:
            return F.cross_entropy(outputs.float(), labels.long(), reduction="none")
        return (outputs[:, 0].float() - labels.float()).square()

    @cached_property
    def _tokenizer(self) -> Any:
        path = Path(self.pretrained) / "tokenizer.json"
        tokenizer = read_tokenizer(path)
        missing = [token for token in ("<cls>", "<sep>", "<pad>") if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(f"{path} must have the tokens {', '.join(missing)}")
        return tokenizer

    def _special(self, token: str) -> int:
        return self._tokenizer.token_to_id(token)

    def _encode(self, example: GlueExample) -> list[int]:
        """``<cls> first <sep> second <sep>``; a single text has an empty second one."""
        first, second = (
            self._tokenizer.encode(text, add_special_tokens=False).ids for text in (example.first, example.second)
        )
        while len(first) + len(second) + 3 > self.context:
            (first if len(first) >= len(second) else second).pop()
        return [self._special("<cls>"), *first, self._special("<sep>"), *second, self._special("<sep>")]

    def _collate(self, examples: list[tuple[list[int], float]]) -> tuple[Tensor, Tensor]:
        tokens = [torch.tensor(numbers) for numbers, _ in examples]
        filled = pad_sequence(tokens, batch_first=True, padding_value=self._special("<pad>"))
        return filled, torch.tensor([label for _, label in examples])


class GlueModel(nn.Module):
    """An encoder and the published head on its first token.

    Args:
        encoder: pretrained.
        outputs: classes, or 1 for a score.
        padding: the token that pads batches; it is masked in attention.
    """

    def __init__(self, encoder: CrammedBert, *, outputs: int, padding: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(encoder.config.width, HEAD_WIDTH),
            nn.Tanh(),
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(HEAD_WIDTH, outputs),
        )
        self.padding = padding

    def forward(self, input_ids: Tensor) -> Tensor:
        """``(B, N)`` to ``(B, outputs)``."""
        return self.head(self.encoder.encode(input_ids, input_ids != self.padding)[:, 0])


class _Pairs(Dataset[tuple[list[int], float]]):
    """Examples, encoded on access."""

    def __init__(self, examples: list[GlueExample], encode: Callable[[GlueExample], list[int]]) -> None:
        self._examples = examples
        self._encode = encode

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[list[int], float]:
        example = self._examples[index]
        return self._encode(example), example.label
