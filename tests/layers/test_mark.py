import pytest
import torch

from preconditioned_attention.config import GRADIENTS, PLACEMENTS
from preconditioned_attention.layers.mark import Mark, is_current, make_mark, read_mark, read_shape, value_of

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
    assert mark.max() == mark.min() == mark.quantile(0.5) == value_of(MARKS[-1])
    assert mark.std() == 0
    assert mark.flatten().kthvalue(mark.numel()).values == mark.max()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_the_values_say_the_same(dtype: torch.dtype) -> None:
    """A reader that cuts a tensor to the size of another leaves them; what arithmetic makes of them says nothing."""
    for mark in MARKS[1:]:
        tensor = make_mark(mark, dtype=dtype)
        assert read_mark(tensor[:2, :2, :2]) == mark
    last = make_mark(MARKS[-1]).to(dtype).float()
    for other in (torch.ones_like(last), last * 0, last / 3, last * float("nan"), last - 1.5):
        assert read_mark(other) == MARKS[-1]


def test_values_of_ones_of_every_shape_say_nothing() -> None:
    """As all marks had them before."""
    assert value_of(MARKS[0]) == 1
    for mark in MARKS:
        assert read_mark(torch.ones_like(make_mark(mark))) == mark
        assert read_shape(make_mark(mark).shape) == mark


@pytest.mark.parametrize("thing", [1, None, [2, 2, 2], "full"], ids=str)
def test_what_is_no_tensor(thing: object) -> None:
    with pytest.raises(ValueError, match="a mark is a tensor: copy the key"):
        read_mark(thing)
