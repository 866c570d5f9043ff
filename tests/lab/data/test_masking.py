import pytest
import torch
from torch.utils.data import TensorDataset

from preconditioned_attention.lab.data.masking import MaskedWindows

WINDOWS = [torch.arange(100) + 10 * number for number in range(3)]
MASK, VOCABULARY = 999, 500


def test_a_quarter_is_to_be_guessed_in_fixed_parts() -> None:
    masked, drawn, left = 0, 0, 0
    examples = MaskedWindows(WINDOWS, mask=MASK, vocab_size=VOCABULARY)  # type: ignore[arg-type]
    assert len(examples) == 3
    for index in range(3):
        tokens, positions, targets = examples[index]
        assert positions.shape == targets.shape == (25,)
        assert len(set(positions.tolist())) == 25
        assert torch.equal(targets, WINDOWS[index][positions])
        others = torch.ones(100, dtype=torch.bool)
        others[positions] = False
        assert torch.equal(tokens[others], WINDOWS[index][others])
        assert torch.equal(tokens[positions[:20]], torch.full((20,), MASK))
        masked += int((tokens == MASK).sum())
        drawn += int((tokens[positions[20:22]] < VOCABULARY).sum())
        left += int((tokens[positions[22:]] == targets[22:]).sum())
    assert (masked, drawn, left) == (60, 6, 9)
    assert torch.equal(WINDOWS[0], torch.arange(100))  # the source is as it was


def test_positions_and_random_tokens_are_spread() -> None:
    examples = MaskedWindows(TensorDataset(torch.zeros(1, 40, dtype=torch.long)), mask=7, vocab_size=6)  # type: ignore[arg-type]
    torch.manual_seed(0)
    drawn = [examples[0] for _ in range(400)]
    counts = torch.stack([positions for _, positions, _ in drawn]).flatten().bincount(minlength=40)
    assert counts.min() > 60  # 100 expected
    tokens = torch.cat([hidden[positions[8:9]] for hidden, positions, _ in drawn])
    assert set(tokens.tolist()) == set(range(6))


def test_masks_of_an_evaluation_are_the_same_every_time() -> None:
    fixed = MaskedWindows(WINDOWS, mask=MASK, vocab_size=VOCABULARY, seed=0)  # type: ignore[arg-type]
    state = torch.get_rng_state()
    first = fixed[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, fixed[1], strict=True))
    assert not torch.equal(first[1], fixed[2][1])
    free = MaskedWindows(WINDOWS, mask=MASK, vocab_size=VOCABULARY)  # type: ignore[arg-type]
    assert not torch.equal(free[1][1], free[1][1])


def test_short_windows_have_something_to_guess() -> None:
    assert len(MaskedWindows([torch.arange(2)], mask=MASK, vocab_size=5, share=0.1)[0][1]) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="share must be more than 0 and less than 1"):
        MaskedWindows(WINDOWS, mask=MASK, vocab_size=5, share=1.0)  # type: ignore[arg-type]
