"""The Python language reference, which comes with every Python, as a corpus.

Source: ``pydoc_data.topics`` of the standard library, the texts behind ``help("for")`` and the like; © Python Software
Foundation, PSF license. Every release of Python has its own, so results name the version and a hash of the text.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass

PARTS = 10  # of the topics, by a hash of their names: one for validation, one for test, the rest for training
TEST_PART, VALIDATION_PART = 0, 1


@dataclass(frozen=True, kw_only=True)
class PythonReference:
    """The corpus in three parts; a document is a topic.

    Attributes:
        train, validation, test: the documents.
        python: the version of Python that they came with.
        sha256: of all documents, their names and their parts.
        left_out: the topics that are not used, because longer ones hold most of their text.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    python: str
    sha256: str
    left_out: tuple[str, ...]

    def describe(self) -> dict[str, str | int]:
        """Description of the corpus for reports."""
        sizes = {
            f"{part} bytes": sum(len(text.encode()) for text in getattr(self, part))
            for part in ("train", "validation", "test")
        }
        return {
            "corpus": "Python language reference (pydoc_data.topics)",
            "Python": self.python,
            "sha256": self.sha256,
            "topics": len(self.train) + len(self.validation) + len(self.test),
            "topics left out as parts of others": len(self.left_out),
            **sizes,
        }


def load_python_reference() -> PythonReference:
    """The corpus of the running Python, split by topic.

    Many topics are sections of others: a topic half of whose text stands, paragraph by paragraph, in longer ones is
    left out, or the test part would hold what was trained on.
    """
    from pydoc_data.topics import topics

    kept, left_out = without_repeated(topics)
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    digest = hashlib.sha256()
    for name in sorted(kept):
        part = _part_of(name)
        parts[part].append(topics[name])
        digest.update(f"{part}\0{name}\0{topics[name]}\0".encode())
    return PythonReference(
        **{part: tuple(texts) for part, texts in parts.items()},
        python=platform.python_version(),
        sha256=digest.hexdigest(),
        left_out=tuple(sorted(left_out)),
    )


def without_repeated(topics: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The names to keep, and those of topics with at least half of their text in longer ones; white space aside."""
    seen: set[str] = set()
    kept: list[str] = []
    left_out: list[str] = []
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [" ".join(paragraph.split()) for paragraph in topics[name].split("\n\n")]
        repeated = sum(len(paragraph) for paragraph in paragraphs if paragraph in seen)
        (left_out if 2 * repeated >= sum(map(len, paragraphs)) else kept).append(name)
        seen.update(paragraphs)
    return kept, left_out


def _part_of(name: str) -> str:
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % PARTS
    return {TEST_PART: "test", VALIDATION_PART: "validation"}.get(number, "train")
