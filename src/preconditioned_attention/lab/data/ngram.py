"""Byte-level n-gram models with interpolated, modified Kneser-Ney smoothing, as baselines.

Source: S. F. Chen and J. Goodman, An Empirical Study of Smoothing Techniques for Language Modeling, Computer Speech
and Language 13, 1999, section 3; the discounts where counts of counts give none are those that KenLM falls back to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..._checks import check_integer
from ..._extras import require

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Integers = NDArray[numpy.int64]
    Reals = NDArray[numpy.float64]

BOUNDARY = 256
SYMBOLS = 257
LARGEST_ORDER = 7  # 257 ** 7 is the last power that an int64 holds
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Level:
    """The counts of one order: sorted n-grams, and per context the total and the mass of the shorter n-grams."""

    grams: Integers
    counts: Integers
    contexts: Integers
    totals: Reals
    reserved: Reals
    discounts: Reals  # by count, 0 to 3; more is as 3


class KneserNey:
    """An n-gram model of bytes and of a document's end.

    With `c` the count of an n-gram (in the longest order; in the shorter ones the number of distinct symbols that it
    was seen after), `h` its context, `D_1, D_2, D_3` the order's discounts for counts of one, two and more, and
    `N_i(h)` the number of symbols seen `i` times after `h`::

        p_n(w | h) = (max(c(h w) - D(c), 0) + (D_1 N_1 + D_2 N_2 + D_3 N_3) p_{n-1}(w | h')) / sum_v c(h v)

    and `p_n = p_{n-1}` where `h` was never seen; `p_0` is 1/257 for each of 256 bytes and the end.

    Args:
        documents: the training text. Each document is followed by an end; contexts reach over it.
        order: the length of the longest n-gram, 1 to 7.

    Raises:
        ValueError: ``order`` is out of range, or there is no text. ImportError: NumPy is missing.
    """

    def __init__(self, documents: Iterable[str], *, order: int) -> None:
        if check_integer("order", order, minimum=1) > LARGEST_ORDER:
            raise ValueError(f"order must be at most {LARGEST_ORDER}; got {order}")
        self.order = order
        stream = self._stream(documents)
        if len(stream) < order:
            raise ValueError("documents must hold text; got none")
        grams, counts = self._numpy.unique(_grams(stream, order), return_counts=True)
        levels = [self._level(grams, counts)]
        for length in range(order - 1, 0, -1):
            grams, counts = self._numpy.unique(grams % SYMBOLS**length, return_counts=True)
            levels.append(self._level(grams, counts))
        self._levels = levels[::-1]

    def probabilities(self, grams: Integers) -> Reals:
        """`p(w | h)` of n-grams of ``order`` symbols, each a number in base 257 with the last symbol last."""
        numpy = self._numpy
        result = numpy.full(len(grams), 1 / SYMBOLS)
        for length, level in enumerate(self._levels, start=1):
            own = grams % SYMBOLS**length
            place, known = _find(level.contexts, own // SYMBOLS)
            where, seen = _find(level.grams, own)
            counts = numpy.where(seen, level.counts[where], 0)
            kept = counts - level.discounts[numpy.minimum(counts, 3)]
            result = numpy.where(known, (kept + level.reserved[place] * result) / level.totals[place], result)
        return result

    def bits(self, documents: Iterable[str]) -> float:
        """The bits that the documents take, their ends included."""
        grams = _grams(self._stream(documents), self.order)
        return float(-self._numpy.log2(self.probabilities(grams)).sum())

    def bits_per_byte(self, documents: Sequence[str]) -> float:
        """:meth:`bits` over the documents' bytes in UTF-8; ends cost bits and are no bytes.

        Raises:
            ValueError: there are no bytes.
        """
        size = sum(len(document.encode()) for document in documents)
        if not size:
            raise ValueError("documents must hold text; got none")
        return self.bits(documents) / size

    @cached_property
    def _numpy(self) -> Any:
        return require("numpy", extra="train")

    def _stream(self, documents: Iterable[str]) -> Integers:
        """The symbols of all documents, after as many ends as make a context for the first."""
        numpy = self._numpy
        parts = [numpy.full(self.order - 1, BOUNDARY)]
        for document in documents:
            parts += [numpy.frombuffer(document.encode(), dtype=numpy.uint8), numpy.array([BOUNDARY])]
        return numpy.concatenate(parts).astype(numpy.int64)

    def _level(self, grams: Integers, counts: Integers) -> _Level:
        numpy = self._numpy
        discounts = numpy.array([0.0, *_discounts([int((counts == count).sum()) for count in range(1, 5)])])
        contexts, inverse = numpy.unique(grams // SYMBOLS, return_inverse=True)
        return _Level(
            grams=grams,
            counts=counts,
            contexts=contexts,
            totals=numpy.bincount(inverse, weights=counts),
            reserved=numpy.bincount(inverse, weights=discounts[numpy.minimum(counts, 3)]),
            discounts=discounts,
        )


def _discounts(counts_of_counts: Sequence[int]) -> tuple[float, float, float]:
    """Chen and Goodman's three discounts, from how many n-grams have a count of 1, 2, 3 and 4."""
    if 0 in counts_of_counts:
        return FALLBACK_DISCOUNTS
    one, two, three, four = counts_of_counts
    share = one / (one + 2 * two)
    found = (1 - 2 * share * two / one, 2 - 3 * share * three / two, 3 - 4 * share * four / three)
    usable = all(0 <= discount <= count for count, discount in enumerate(found, start=1))
    return found if usable else FALLBACK_DISCOUNTS


def _grams(stream: Integers, order: int) -> Integers:
    """Every run of ``order`` symbols as a number in base 257."""
    length = len(stream) - order + 1
    grams = stream[:length]
    for offset in range(1, order):
        grams = grams * SYMBOLS + stream[offset : offset + length]
    return grams


def _find(table: Integers, keys: Integers) -> tuple[Integers, Any]:
    """The position of each key in the sorted table, and whether it is there."""
    where = table.searchsorted(keys)
    where[where == len(table)] = 0
    return where, table[where] == keys
