import functools
import os.path
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor

from preconditioned_attention.conversion.detection.named_objects import named_objects, nested_code, underlying_callables
from tests.helpers import elsewhere
from tests.helpers.elsewhere import mix_elsewhere as renamed

LIMIT = 3


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x


apply_own = Own.apply


@torch.compile
def compiled(x: Tensor) -> Tensor:
    return x


@functools.lru_cache
def cached(x: int) -> int:
    return x


def makes(inner: FunctionType) -> FunctionType:
    def made(x: Tensor) -> Tensor:
        return inner(x)

    return made


def test_names_mean_objects() -> None:
    def uses(x: Tensor) -> object:
        from torch.nn.functional import softmax as local

        return [elsewhere._inner(y) for y in x], renamed(x), F.relu, torch.ops.aten.bmm.default(x, x), local, LIMIT

    found = named_objects(uses)
    for value in (elsewhere._inner, renamed, F.relu, torch.ops.aten.bmm, F.softmax, LIMIT, elsewhere):
        assert any(value is other for other in found)
    assert not any(other is elsewhere.TABLE for other in found)
    assert renamed in named_objects(makes(renamed))


def test_what_cannot_be_known_is_left_out() -> None:
    def uses(x: Tensor) -> object:
        from not_imported.at_all import anything

        return x.softmax(-1), not_defined_anywhere, anything, os.path.not_there  # noqa: F821

    named = [value for value in named_objects(uses) if value not in (os, os.path)]
    assert named == []


def test_wrappers_are_opened() -> None:
    for wrapped, function in (
        (functools.partial(renamed, 1), renamed),
        (functools.partial(F.relu, renamed), renamed),
        (staticmethod(renamed), renamed),
        (Own, Own.forward),
        (apply_own, Own.forward),
        (cached, cached.__wrapped__),
        (elsewhere.TABLE, elsewhere._inner),
        ([("one", renamed)], renamed),
    ):
        assert any(meaning is function for meaning in underlying_callables(wrapped))
    (original,) = underlying_callables(compiled)
    assert isinstance(original, FunctionType)
    assert original.__code__.co_filename == __file__
    assert list(underlying_callables(dict.fromkeys(range(1000), renamed))) == []
    assert list(underlying_callables(3)) == []


def test_nested_code() -> None:
    def outer() -> object:
        return lambda: [x + 1 for x in range(3)]

    assert {code.co_name for code in nested_code(outer.__code__)} >= {"outer", "<lambda>"}
