"""Pairs of papers of the ACL Anthology Network, as the Long Range Arena releases them, labeled by citation.

Source: D. Radev et al., The ACL Anthology Network Corpus, 2013; the files ``new_aan_pairs.{train,eval,test}.tsv`` of
the release: label, two ids and two texts, without header and without quoting.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from .sequences import BYTE_OFFSET, as_ids
from .tables import read_table

COLUMNS = ("label", "id 1", "id 2", "text 1", "text 2")
LABELS = {b"0.0": 0, b"1.0": 1, b"0": 0, b"1": 1}


class Pairs(Dataset[tuple[Tensor, Tensor, int]]):
    """Two sequences of ids, bytes plus 1, int64 ``(N,)`` and ``(M,)``, and a label.

    Args:
        texts: two per example.
        labels: one per example.
    """

    def __init__(self, texts: list[tuple[bytes, bytes]], labels: list[int]) -> None:
        self.texts = texts
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        first, second = (as_ids(text, BYTE_OFFSET) for text in self.texts[index])
        return first, second, self.labels[index]


def read_aan(folder: Path, split: str, *, length: int) -> Pairs:
    """The pairs of ``"train"``, ``"eval"`` or ``"test"``.

    Args:
        folder: ``tsv_data`` of the release.
        split: as the file is named.
        length: bytes of a text from there on are left out.

    Raises:
        ValueError: a line is invalid; the message names file and line.
        OSError: the file cannot be read.
    """
    texts: list[tuple[bytes, bytes]] = []
    labels: list[int] = []
    path = folder / f"new_aan_pairs.{split}.tsv"
    for line, (label, _, _, first, second) in read_table(path, COLUMNS, header=False):
        if label not in LABELS:
            raise ValueError(f"{path}, line {line}: the label must be 0.0 or 1.0; got {label[:20]!r}")
        if not (first and second):
            raise ValueError(f"{path}, line {line}: a text is empty")
        texts.append((first[:length], second[:length]))
        labels.append(LABELS[label])
    return Pairs(texts, labels)
