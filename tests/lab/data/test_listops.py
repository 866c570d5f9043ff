"""Lengths and acceptance are held against their exact distribution, computed from the grammar; classes and the share
that the root operator decides against what was measured on 12,000 trees of the release's own generator."""

import statistics
from collections import Counter
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from preconditioned_attention.lab.data.listops import (
    CHUNK,
    OPERATORS,
    SPLITS,
    TOKENS,
    Chunk,
    Expression,
    ListOpsOptions,
    encode_listops,
    encode_source,
    make_chunk,
    make_listops,
    read_listops,
    write_listops,
)

TREES = 12_000
SHORT = {"min_length": 5, "max_length": 40}


@pytest.fixture(scope="module")
def chunks() -> list[Chunk]:
    return [make_chunk(ListOpsOptions(seed=3), number) for number in range(TREES // CHUNK)]


@pytest.fixture(scope="module")
def expressions(chunks: list[Chunk]) -> list[Expression]:
    return [expression for chunk in chunks for expression in chunk.expressions]


def within(share: float, expected: float, *, trials: int, measured_too: bool = False, rounding: float = 0.0) -> bool:
    """Whether a share agrees with an expected one: to four standard errors of a multinomial share (of a difference of
    two, if the expectation was itself measured with as many trials), and the rounding of the expectation."""
    variance = expected * (1 - expected) / trials
    return abs(share - expected) < 4 * sqrt(2 * variance if measured_too else variance) + rounding


def exact_lengths() -> np.ndarray:
    """The probability of every length below 2000 before rejection: the lengths of arguments are convolved."""
    shares = np.zeros(2000)
    shares[1] = 1.0  # ten deep stand digits alone
    for _ in range(9):
        of_arguments, power = np.zeros(2000), shares
        for _ in range(2, 11):
            power = np.convolve(power, shares)[:2000]
            of_arguments += power / 9
        shares = np.zeros(2000)
        shares[1] = 0.75
        shares[2:] += 0.25 * of_arguments[:-2]
    return shares


def tokens_of(expression: Expression) -> list[str]:
    return expression.source.replace("(", "").replace(")", "").split()


APPLY = {
    "[MIN": lambda values: sorted(values)[0],
    "[MAX": lambda values: sorted(values)[-1],
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}


def evaluate(source: str) -> int:
    """A second implementation: a stack of lists, driven by the operators' closing brackets alone."""
    stack: list[list] = [[]]
    for token in source.replace("(", "").replace(")", "").split():
        if token.startswith("["):
            stack.append([token])
        elif token == "]":
            name, *values = stack.pop()
            stack[-1].append(APPLY[name](values))
        else:
            stack[-1].append(int(token))
    ((value,),) = stack
    return value


def test_every_label_is_what_an_independent_evaluator_says(expressions: list[Expression]) -> None:
    assert len(expressions) == TREES
    assert all(evaluate(expression.source) == expression.target for expression in expressions)


def test_the_evaluator_on_expressions_done_by_hand() -> None:
    assert evaluate("( ( ( [MAX 2 ) 9 ) ] )") == 9
    assert evaluate("( ( ( ( [MED 7 ) 2 ) ( ( ( [SM 9 ) 8 ) ] ) ) ] )") == 7
    assert evaluate("( ( ( [MED 7 ) 2 ) ] )") == 4


def test_acceptance_and_lengths(chunks: list[Chunk], expressions: list[Expression]) -> None:
    exact = exact_lengths()[501:]
    attempts = sum(chunk.attempts for chunk in chunks)
    assert round(exact.sum(), 3) == 0.083
    assert within(TREES / attempts, exact.sum(), trials=attempts)
    lengths = np.array([len(tokens_of(expression)) for expression in expressions])
    assert lengths.min() >= 501
    assert lengths.max() <= 1999
    cumulative = np.cumsum(exact / exact.sum())
    deciles = [501 + int(np.searchsorted(cumulative, tenths / 10)) for tenths in range(1, 10)]
    assert deciles == [577, 658, 747, 845, 954, 1078, 1225, 1406, 1643]
    for decile in deciles:
        assert within((lengths <= decile).mean(), cumulative[decile - 501], trials=TREES), decile


def test_classes_and_roots(expressions: list[Expression]) -> None:
    shares = {digit: count / TREES for digit, count in Counter(target for _, target in expressions).items()}
    assert within(shares[0], 0.166, trials=TREES, measured_too=True, rounding=0.0005)
    assert within(shares[9], 0.170, trials=TREES, measured_too=True, rounding=0.0005)
    error = 4 * sqrt(2 * 0.08 * 0.92 / TREES)
    assert all(0.065 - error < shares[digit] < 0.095 + error for digit in range(1, 9))
    by_root: dict[str, Counter] = {}
    for expression in expressions:
        by_root.setdefault(tokens_of(expression)[0], Counter())[expression.target] += 1
    assert all(within(by_root[root].total() / TREES, 0.25, trials=TREES) for root in OPERATORS)
    right = {root: counts.most_common(1)[0][1] for root, counts in by_root.items()}
    assert within(sum(right.values()) / TREES, 0.365, trials=TREES, measured_too=True, rounding=0.0005)
    for root, share in (("[MIN", 0.56), ("[MAX", 0.56), ("[MED", 0.21), ("[SM", 0.11)):
        mine = right[root] / by_root[root].total()
        assert within(mine, share, trials=TREES // 4, measured_too=True, rounding=0.005), root


def test_depth_and_arguments(expressions: list[Expression]) -> None:
    sizes: Counter = Counter()
    for expression in expressions[:500]:
        stack, deepest = [], 0
        for token in tokens_of(expression):
            if token == "]":
                sizes[stack.pop()] += 1
            elif stack:
                stack[-1] += 1
            if token.startswith("["):
                stack.append(0)
            deepest = max(deepest, len(stack) + token.isdigit())
        assert deepest == 10
    # Uniform before rejection; rejection by length bends the shares a little, and keeps all of them.
    assert sorted(sizes) == list(range(2, 11))


def test_brackets_are_those_of_the_release() -> None:
    expression = make_chunk(ListOpsOptions(min_length=4, max_length=4), 0).expressions[0]
    operator, first, second, _ = tokens_of(expression)
    assert expression.source == f"( ( ( {operator} {first} ) {second} ) ] )"


def test_the_same_for_any_number_of_processes_and_all_distinct() -> None:
    options = ListOpsOptions(count=900, held_out=50, seed=1, **SHORT)
    alone, shared = list(make_listops(options)), list(make_listops(options, workers=2))
    assert alone == shared
    assert len(alone) == len({source for source, _ in alone}) == 1000
    assert alone != list(make_listops(ListOpsOptions(count=900, held_out=50, seed=2, **SHORT)))


def test_what_is_read_is_what_was_made(tmp_path: Path) -> None:
    options = ListOpsOptions(count=250, held_out=20, seed=5, min_length=50, max_length=120)
    steps = []
    write_listops(tmp_path / "out", options, on_progress=lambda: steps.append(1))
    assert len(steps) == 290
    assert not list(tmp_path.glob(".*"))
    made = list(make_listops(options))
    parts = {"train": made[:250], "val": made[250:270], "test": made[270:]}
    for split in SPLITS:
        lines = "".join(f"{source}\t{target}\r\n" for source, target in parts[split])
        assert (tmp_path / "out" / f"basic_{split}.tsv").read_bytes() == f"Source\tTarget\r\n{lines}".encode()
        read, expected = read_listops(tmp_path / "out", split), encode_listops(parts[split])
        assert (list(read.ids), list(read.labels)) == (list(expected.ids), list(expected.labels))
        names = [[TOKENS[number - 1] for number in ids] for ids in read.ids]
        assert names == [tokens_of(expression) for expression in parts[split]]
    ids, label = read_listops(tmp_path / "out", "test")[0]
    assert (ids.dtype, label) == (torch.int64, parts["test"][0].target)


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        write_listops(tmp_path / "out", ListOpsOptions(count=1, held_out=1, **SHORT))


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_listops(tmp_path / "out", ListOpsOptions(count=5, held_out=1, **SHORT), on_progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"basic_val.tsv is empty; it must hold lines of Source, Target"),
        ("Source\tTarget\n", r"basic_val.tsv is empty"),
        ("Source\n( ( ( [MAX 2 ) 9 ) ] )\n", r"basic_val.tsv, line 1: 2 columns .*\(Source, Target\); got 1"),
        ("Text\tTarget\n", r"basic_val.tsv, line 1: the header must be Source, Target"),
        ("Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t9\n5\n", r"basic_val.tsv, line 3: 2 columns .*; got 1"),
        ("Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t10\n", r"line 2: the target must be a digit, 0 to 9; got b'10'"),
        ("Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t-\n", r"line 2: the target must be a digit"),
        ("Source\tTarget\n( ( ( [TOP 2 ) 9 ) ] )\t9\n", r"line 2: the source must hold the tokens 0 1"),
        ("Source\tTarget\n( ( ( [MAX 29 ) ] )\t9\n", r"line 2: the source must hold"),
        ("Source\tTarget\n\t9\n", r"line 2: the source must hold"),
    ],
)
def test_broken_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "basic_val.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_listops(tmp_path, "val")


def test_sources_are_checked() -> None:
    assert encode_source(b"( ( ( [MAX 2 ) 9 ) ] )", "here") == bytes((12, 3, 10, 15))
    for broken in (b"[MAX  2 9 ]", b"[MAX 2 9 ] ", b" 2", b"a", b"[MAX\t2 9 ]"):
        with pytest.raises(ValueError, match="here: the source"):
            encode_source(broken, "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"min_length": 50, "max_length": 49}, "max_length must be at least 50; got 49"),
        ({"max_length": 3, "min_length": 1}, "max_length must be at least 4"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ListOpsOptions(**options)


def test_more_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"hardly more than 400 of them, and 1002 are wanted"):
        list(make_listops(ListOpsOptions(count=1000, held_out=1, min_length=4, max_length=4)))
