import numpy
import pytest
import torch

from preconditioned_attention.lab.data.windows import NOT_SCORED, RandomWindows, ScoredWindows


@pytest.mark.parametrize("length", [2, 3, 8, 9])
@pytest.mark.parametrize("size", [2, 3, 8, 9, 10, 14, 100])
def test_every_token_but_the_first_is_scored_once_with_what_came_before(size: int, length: int) -> None:
    tokens = numpy.arange(size, dtype=numpy.uint16) + 7
    scored = []
    for number, (inputs, targets) in enumerate(ScoredWindows(tokens, length)):
        assert inputs.shape == targets.shape == (length,)
        places = (targets != NOT_SCORED).nonzero().flatten()
        assert len(places)
        assert torch.equal(inputs[places] + 1, targets[places])
        assert torch.equal(inputs[: places[-1] + 1], torch.arange(int(places[-1]) + 1) + int(inputs[0]))
        assert number == 0 or places[0] >= length // 2
        scored += targets[places].tolist()
    assert scored == list(range(8, size + 7))


def test_random_windows_come_from_everywhere_and_from_the_global_generator() -> None:
    tokens = numpy.arange(50, dtype=numpy.int64)
    windows = RandomWindows(tokens, 8)
    assert len(windows) == 6
    starts = set()
    for _ in range(200):
        for index in range(len(windows)):
            inputs, targets = windows[index]
            assert torch.equal(inputs, torch.arange(8) + inputs[0])
            assert torch.equal(targets, inputs + 1)
            starts.add(int(inputs[0]))
    assert starts == set(range(42))  # the last window ends with the last token
    torch.manual_seed(3)
    first = windows[2]
    torch.manual_seed(3)
    assert torch.equal(windows[2][0], first[0])


def test_too_few_tokens() -> None:
    with pytest.raises(ValueError, match="more than one window of 8; got 8 tokens"):
        RandomWindows(numpy.arange(8), 8)
    assert len(RandomWindows(numpy.arange(9), 8)) == 1
    with pytest.raises(ValueError, match="at least two tokens; got 1"):
        ScoredWindows(numpy.arange(1), 8)
    with pytest.raises(IndexError):
        ScoredWindows(numpy.arange(9), 8)[1]
