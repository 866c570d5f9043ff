import itertools
import math
import random
from collections import Counter, defaultdict

import numpy
import pytest

from preconditioned_attention.lab.data.ngram import BOUNDARY, FALLBACK_DISCOUNTS, SYMBOLS, KneserNey, _discounts

WORDS = ["the cat sat on the mat", "a cat and a dog", "the dog ate the cat's food", "nobody sat on the dog's mat"]


def text(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(" ".join(WORDS).split()) for _ in range(words))


class ByHand:
    """The same model written with dictionaries and loops."""

    def __init__(self, documents: list[str], order: int) -> None:
        stream = [BOUNDARY] * (order - 1)
        for document in documents:
            stream += [*document.encode(), BOUNDARY]
        tables = [Counter(tuple(stream[i : i + order]) for i in range(len(stream) - order + 1))]
        for _ in range(order - 1):
            left = defaultdict(set)
            for gram in tables[0]:
                left[gram[1:]].add(gram[0])
            tables.insert(0, Counter({gram: len(symbols) for gram, symbols in left.items()}))
        self.order, self.tables = order, tables
        self.discounts = [self._discounts_of(table) for table in tables]

    @staticmethod
    def _discounts_of(table: Counter) -> list[float]:
        n = Counter(table.values())
        if not all(n[count] for count in (1, 2, 3, 4)):
            return [0.0, *FALLBACK_DISCOUNTS]
        y = n[1] / (n[1] + 2 * n[2])
        found = [count - (count + 1) * y * n[count + 1] / n[count] for count in (1, 2, 3)]
        usable = all(0 <= d <= count for count, d in enumerate(found, start=1))
        return [0.0, *(found if usable else FALLBACK_DISCOUNTS)]

    def probability(self, gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / SYMBOLS
        table, discounts = self.tables[len(gram) - 1], self.discounts[len(gram) - 1]
        after = {g: count for g, count in table.items() if g[:-1] == gram[:-1]}
        lower = self.probability(gram[1:])
        if not after:
            return lower
        count = table.get(gram, 0)
        mass = sum(discounts[min(c, 3)] for c in after.values())
        return (count - discounts[min(count, 3)] + mass * lower) / sum(after.values())


def number(gram: tuple[int, ...]) -> int:
    return sum(symbol * SYMBOLS**power for power, symbol in enumerate(reversed(gram)))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_written_out_by_hand(order: int) -> None:
    documents = [text(seed, 30) for seed in range(4)]
    model, by_hand = KneserNey(documents, order=order), ByHand(documents, order)
    stream = [BOUNDARY] * (order - 1) + [*text(9, 20).encode(), BOUNDARY, *b"\xc3\xa9qz"]
    grams = [tuple(stream[i : i + order]) for i in range(len(stream) - order + 1)]
    got = model.probabilities(numpy.array([number(gram) for gram in grams]))
    numpy.testing.assert_allclose(got, [by_hand.probability(gram) for gram in grams], rtol=1e-12)


def test_counts_small_enough_for_pencil_and_paper() -> None:
    # Stream: END a b a c END. Bigrams by context: END: a once; a: b once, c once; b: a once; c: END once. Each unigram
    # was seen after one symbol but a, which was seen after END and b: a 2, b 1, c 1, END 1, five in all. No order has
    # counts of 3 and 4, so the discounts are 1/2 for a count of one, and one for a count of two.
    model = KneserNey(["abac"], order=2)
    a, b, end = ord("a"), ord("b"), BOUNDARY
    unigram = {
        w: (count - discount + (3 * 0.5 + 1.0) / SYMBOLS) / 5 for w, count, discount in [(a, 2, 1.0), (b, 1, 0.5)]
    }
    expected = [
        (1 - 0.5 + 2 * 0.5 * unigram[b]) / 2,  # b after a
        (0 + 2 * 0.5 * unigram[a]) / 2,  # a after a: never seen
        (1 - 0.5 + 0.5 * unigram[a]) / 1,  # a at the beginning
        unigram[a],  # after a context that was never seen
    ]
    grams = numpy.array([number(gram) for gram in [(a, b), (a, a), (end, a), (ord("z"), a)]])
    numpy.testing.assert_allclose(model.probabilities(grams), expected, rtol=1e-14)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
def test_probabilities_sum_to_one(order: int) -> None:
    model = KneserNey([text(seed, 200) for seed in range(3)], order=order)
    contexts = [*itertools.islice(zip(*(text(7, 9).encode()[i:] for i in range(order - 1)), strict=False), 40)]
    for context in [*contexts, (BOUNDARY,) * (order - 1), (0,) * (order - 1)]:
        grams = numpy.array([number((*context, symbol)) for symbol in range(SYMBOLS)])
        probabilities = model.probabilities(grams)
        assert probabilities.min() > 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_discounts_are_chen_and_goodmans() -> None:
    # 10 once, 5 twice, 3 three times, 2 four times: Y = 10 / 20.
    assert _discounts([10, 5, 3, 2]) == pytest.approx((1 - 2 * 0.5 * 5 / 10, 2 - 3 * 0.5 * 3 / 5, 3 - 4 * 0.5 * 2 / 3))
    assert _discounts([10, 0, 3, 2]) == FALLBACK_DISCOUNTS
    assert _discounts([1, 5, 100, 2]) == FALLBACK_DISCOUNTS  # one of the three would be negative


def test_bits_count_ends_and_bytes_do_not() -> None:
    training = [text(seed, 100) for seed in range(3)]
    model = KneserNey(training, order=3)
    document = "the cat é"
    stream = [BOUNDARY, BOUNDARY, *document.encode(), BOUNDARY]
    grams = numpy.array([number(tuple(stream[i : i + 3])) for i in range(len(stream) - 2)])
    bits = -sum(math.log2(p) for p in model.probabilities(grams))
    assert len(grams) == len(document.encode()) + 1
    assert model.bits([document]) == pytest.approx(bits)
    assert model.bits_per_byte([document]) == pytest.approx(bits / len(document.encode()))
    assert KneserNey(training, order=5).bits_per_byte(training) < model.bits_per_byte(training)


@pytest.mark.parametrize(
    ("documents", "order", "message"),
    [(["ab"], 8, "order must be at most 7"), (["ab"], 0, "order must be at least 1"), ([], 3, "must hold text")],
)
def test_what_makes_no_model(documents: list[str], order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KneserNey(documents, order=order)


def test_no_bytes_no_bits_per_byte() -> None:
    with pytest.raises(ValueError, match="must hold text"):
        KneserNey(["ab"], order=2).bits_per_byte([""])
