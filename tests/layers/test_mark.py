import pytest
import torch

from preconditioned_attention.config import GRADIENTS, PLACEMENTS
from preconditioned_attention.layers.mark import Mark, is_current, make_mark, read_mark

MARKS = [Mark(gradient, placement) for gradient in GRADIENTS for placement in PLACEMENTS]


@pytest.mark.parametrize("mark", MARKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool], ids=str)
def test_what_was_written_is_read(mark: Mark, dtype: torch.dtype) -> None:
    tensor = make_mark(mark, dtype=dtype)
    assert is_current(tensor)
    assert read_mark(tensor) == mark
    assert read_mark(make_mark(mark, device="meta")) == mark, "no value is read"


def test_marks_of_two_kinds_cannot_be_averaged() -> None:
    for first in MARKS:
        for second in MARKS:
            if first == second:
                assert read_mark((make_mark(first) + make_mark(second)) / 2) == first
            else:
                with pytest.raises(RuntimeError, match="must match the size of tensor b"):
                    make_mark(first) + make_mark(second)


def test_statistics_of_it_are_defined() -> None:
    """Tools that print, trim or quantize every tensor of a state dict ask for these, and an empty tensor raises."""
    mark = make_mark(MARKS[-1])
    assert mark.max() == mark.min() == mark.quantile(0.5) == 1
    assert mark.std() == 0
    assert mark.flatten().kthvalue(mark.numel()).values == 1


@pytest.mark.parametrize("mark", MARKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_three_integers_are_still_read(mark: Mark, dtype: torch.dtype) -> None:
    old = torch.tensor([1, GRADIENTS.index(mark.gradient), PLACEMENTS.index(mark.placement)])
    assert not is_current(old)
    assert read_mark(old.to(dtype)) == mark
    assert read_mark(torch.stack([old.to(dtype)] * 3).float().mean(0)) == mark


@pytest.mark.parametrize(
    "values", [[0, 0, 0], [99, 0, 0], [1, 7, 0], [1, 0.5, 0], [1, 0, -1], [float("nan")] * 3], ids=str
)
def test_three_numbers_that_say_nothing(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"of another version than .* or arithmetic on state dicts .* copy the key"):
        read_mark(torch.tensor(values))


def test_what_has_no_form_that_is_known() -> None:
    for shape in [(), (0,), (4,), (3, 2, 2), (2, 4, 2), (2, 2, 1), (2, 2)]:
        with pytest.raises(
            ValueError, match=r"has shape \(.*of another version .* load it with the version that wrote"
        ):
            read_mark(torch.ones(shape))
    with pytest.raises(ValueError, match="three integers on the meta device"):
        read_mark(torch.ones(3, device="meta"))
