"""Generator and reader of ListOps of the Long Range Arena: nested operations on digits.

``[MAX 4 [MED 1 5 2 ] 0 ]`` is 4. The operators are MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10).
A node less than ten deep is an operator with probability 1/4 and a digit otherwise; an operator has two to ten
arguments; digits, operators and numbers of arguments are uniform. Kept are expressions of more than 500 and less than
2000 tokens, each once. This is the distribution of the release, whose files this module also reads and writes:
``basic_{train,val,test}.tsv`` with the columns ``Source`` and ``Target``, the source with a pair of brackets round
every step of applying an operator, ``( ( ( [MAX 4 ) 1 ) ] )``.

Source: N. Nangia and S. Bowman, ListOps: A Diagnostic Dataset for Latent Tree Learning, NAACL 2018 (student workshop);
Y. Tay et al., Long Range Arena, ICLR 2021, whose code drew its numbers from another generator: the distribution is the
same, the expressions are not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..._checks import check_integer
from .limits import check_disk, check_processes
from .new_folder import write_folder
from .sequences import Sequences
from .tables import read_table
from .worker_pool import worker_pool

SPLITS = ("train", "val", "test")
COLUMNS = ("Source", "Target")
END_OF_LINE = "\r\n"  # that of Python's csv module, which wrote the release
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = (*"0123456789", *OPERATORS, "]")
"""The token with index i has id i + 1; 0 is padding. The release fixes no order."""

OPERATOR_PROBABILITY = 0.25
MOST_ARGUMENTS = 10
MAX_DEPTH = 10
CHUNK = 200  # expressions that share a random stream: the unit of work of a process
MOST_ATTEMPTS = 1_000_000
MOST_EXPRESSIONS = 10**8
LONGEST = 10**6  # tokens

_DIGITS = "0123456789"
_OPERATOR_BYTES = (b"\xf8", b"\xf9", b"\xfa", b"\xfb")  # stand for the operators; in UTF-8 they never occur
_SINGLE = (*(digit.encode() for digit in _DIGITS), *_OPERATOR_BYTES, b"]")
_IDS = bytes(_SINGLE.index(bytes([byte])) + 1 if bytes([byte]) in _SINGLE else 0 for byte in range(256))


@dataclass(frozen=True, kw_only=True)
class ListOpsOptions:
    """Options of a set of expressions.

    Args:
        count: training expressions.
        held_out: validation expressions, and as many test expressions.
        seed: decides all random numbers.
        min_length, max_length: tokens of an expression, without round brackets, both included; the defaults are the
            release's.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    count: int = 96_000
    held_out: int = 2_000
    seed: int = 0
    min_length: int = 501
    max_length: int = 1999

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, minimum=0)
        for name, maximum in (("count", MOST_EXPRESSIONS), ("held_out", MOST_EXPRESSIONS), ("min_length", LONGEST)):
            check_integer(name, getattr(self, name), minimum=1, maximum=maximum)
        check_integer("max_length", self.max_length, minimum=max(4, self.min_length), maximum=LONGEST)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Expressions in the three splits."""
        return self.count, self.held_out, self.held_out


class Expression(NamedTuple):
    """``source`` as the release writes it, and its value."""

    source: str
    target: int


class Chunk(NamedTuple):
    """Expressions of one random stream, and how many roots were drawn for them."""

    expressions: list[Expression]
    attempts: int


def make_listops(options: ListOpsOptions, *, workers: int = 1) -> Iterator[Expression]:
    """All expressions: those for training, then validation, then test; no two are equal.

    They depend on the options alone: chunk ``n`` has a random stream of its own, and duplicates are left out in the
    order of the chunks.

    Args:
        options: see there.
        workers: processes that share the work. With more than one the calling script needs the usual
            ``if __name__ == "__main__":``.

    Raises:
        ValueError: there are not so many expressions of such lengths, or hardly any.
    """
    with worker_pool(workers) as run:
        yield from _make_all(options, run)


def _make_all(
    options: ListOpsOptions, run: Callable[[Callable[[tuple[ListOpsOptions, int]], Chunk], Iterable], Iterable[Chunk]]
) -> Iterator[Expression]:
    seen: set[bytes] = set()
    wanted, number = sum(options.sizes), 0
    while len(seen) < wanted:
        before = len(seen)
        needed = -(-(wanted - before) // CHUNK)
        for chunk in run(_numbered_chunk, [(options, n) for n in range(number, number + needed)]):
            for expression in chunk.expressions:
                digest = blake2b(expression.source.encode(), digest_size=16).digest()
                if digest not in seen and len(seen) < wanted:
                    seen.add(digest)
                    yield expression
        number += needed
        if len(seen) == before:
            raise ValueError(
                f"{CHUNK * needed} further expressions of {options.min_length} to {options.max_length} tokens were all "
                f"duplicates: there are hardly more than {len(seen)} of them, and {wanted} are wanted; ask for fewer "
                "or for longer ones"
            )


def make_chunk(options: ListOpsOptions, number: int) -> Chunk:
    """Chunk ``number``: :data:`CHUNK` expressions, a function of the arguments alone.

    Raises:
        ValueError: no expression of these lengths came up in a million attempts.
    """
    draw = random.Random(f"listops {options.seed} {number}").random
    expressions: list[Expression] = []
    attempts = last = 0
    while len(expressions) < CHUNK:
        attempts += 1
        if attempts - last > MOST_ATTEMPTS:
            raise ValueError(
                f"no expression of {options.min_length} to {options.max_length} tokens came up in {MOST_ATTEMPTS} "
                "attempts; widen the range"
            )
        if draw() >= OPERATOR_PROBABILITY:
            continue  # a digit alone is too short
        left = [options.max_length]
        try:
            source, target = _grow(draw, 1, left)
        except _TooLongError:
            continue
        if options.max_length - left[0] >= options.min_length:
            expressions.append(Expression(source, target))
            last = attempts
    return Chunk(expressions, attempts)


def _numbered_chunk(arguments: tuple[ListOpsOptions, int]) -> Chunk:
    return make_chunk(*arguments)


class _TooLongError(Exception):
    """The tree has more tokens than it may."""


def _grow(draw: Callable[[], float], depth: int, left: list[int]) -> tuple[str, int]:
    """An operator node at this depth: its source and its value. ``left`` holds the number of tokens still allowed."""
    operator = int(draw() * 4)
    size = 2 + int(draw() * (MOST_ARGUMENTS - 1))
    left[0] -= 2 + size  # the digits that the arguments may be; operators among them take theirs back
    if left[0] < 0:
        raise _TooLongError
    parts, values = [OPERATORS[operator]], []
    deeper = depth + 1
    for _ in range(size):
        if deeper < MAX_DEPTH and draw() < OPERATOR_PROBABILITY:
            left[0] += 1
            part, value = _grow(draw, deeper, left)
        else:
            value = int(draw() * 10)
            part = _DIGITS[value]
        parts.append(part)
        values.append(value)
    parts.append("]")
    return "( " * (size + 1) + " ) ".join(_joined(parts)) + " )", _apply(operator, values)


def _joined(parts: list[str]) -> list[str]:
    """The operator goes with its first argument."""
    return [f"{parts[0]} {parts[1]}", *parts[2:]]


def _apply(operator: int, values: list[int]) -> int:
    if operator == 0:
        return min(values)
    if operator == 1:
        return max(values)
    if operator == 3:
        return sum(values) % 10
    values.sort()
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) // 2


def write_listops(
    output: Path, options: ListOpsOptions, *, workers: int = 1, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Write ``output/basic_{train,val,test}.tsv``; the folder is written in full or not at all.

    Args:
        output: the folder.
        options: see there.
        workers: as in :func:`make_listops`; the files are the same for any number.
        on_progress: called once per expression.

    Raises:
        ValueError: ``output`` exists, or there are not so many expressions.
        OSError: it cannot be written.
    """
    check_processes("workers", workers)
    check_disk(f"count={options.count}: the expressions", sum(options.sizes) * options.min_length, output)
    with write_folder(output) as temporary:
        expressions = make_listops(options, workers=workers)
        for split, size in zip(SPLITS, options.sizes, strict=True):
            with (temporary / f"basic_{split}.tsv").open("w", encoding="utf-8", newline="") as file:
                file.write("\t".join(COLUMNS) + END_OF_LINE)
                for expression in islice(expressions, size):
                    file.write(f"{expression.source}\t{expression.target}{END_OF_LINE}")
                    on_progress()


def read_listops(folder: Path, split: str) -> Sequences:
    """One split, ``"train"``, ``"val"`` or ``"test"``, of the release or of :func:`write_listops`.

    Raises:
        ValueError: a line is not an expression and its value; the message names file and line.
        OSError: the file cannot be read.
    """
    path = folder / f"basic_{split}.tsv"
    return _encode_all(
        (source, _target(target, f"{path}, line {line}"), f"{path}, line {line}")
        for line, (source, target) in read_table(path, COLUMNS, header=True)
    )


def encode_listops(expressions: Iterable[Expression]) -> Sequences:
    """Expressions as the reader gives them."""
    return _encode_all(
        (expression.source.encode(), expression.target, f"expression {number}")
        for number, expression in enumerate(expressions)
    )


def _encode_all(lines: Iterable[tuple[bytes, int, str]]) -> Sequences:
    ids, labels = [], []
    for source, target, where in lines:
        ids.append(encode_source(source, where))
        labels.append(target)
    return Sequences(ids, labels)


def encode_source(source: bytes, where: str) -> bytes:
    """The ids of a source's tokens, one byte each; round brackets, which repeat the structure, are left out.

    Raises:
        ValueError: the source holds something else than tokens with single spaces between; ``where`` names it.
    """
    tokens = source.replace(b"( ", b"").replace(b" )", b"")
    for operator, single in zip(OPERATORS, _OPERATOR_BYTES, strict=True):
        tokens = tokens.replace(operator.encode(), single)
    ids = tokens[::2].translate(_IDS)
    spaces = tokens[1::2]
    if not ids or 0 in ids or len(tokens) % 2 == 0 or spaces.count(b" ") != len(spaces):
        raise ValueError(
            f"{where}: the source must hold the tokens {' '.join(TOKENS)} and round brackets with single spaces "
            f"between; got {source[:60]!r}"
        )
    return ids


def _target(text: bytes, where: str) -> int:
    if len(text) != 1 or not text.isdigit():
        raise ValueError(f"{where}: the target must be a digit, 0 to 9; got {text[:20]!r}")
    return int(text)
