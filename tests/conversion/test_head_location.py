"""What a location reads from a module; `test_declared` has the errors that a user sees."""

import pytest
from torch import nn

from preconditioned_attention.conversion.adapter import HeadShape
from preconditioned_attention.conversion.head_location import HeadLocation


class Attention(nn.Module):
    def __init__(self, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.all = 3, 4, 12
        self.proj = nn.Linear(12, 7) if projection is None else projection


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 3, "head_dim": 4},
        {"num_heads": "num_heads"},
        {"head_dim": "head_dim"},
        {"num_heads": "num_heads", "merged": "all"},
        {"head_dim": "head_dim", "merged": lambda module: module.all},
        {"heads": lambda module: HeadShape(module.num_heads, module.head_dim)},
    ],
    ids=lambda options: " ".join(options),
)
def test_two_numbers_give_the_third(options: dict) -> None:
    location = HeadLocation(hook_targets=("proj",), **options)
    assert location.shape(Attention()) == HeadShape(3, 4)


def test_merged_is_needed_where_the_hook_target_does_not_say_what_it_takes() -> None:
    module = Attention(nn.Identity())
    assert HeadLocation(hook_targets=("proj",), num_heads=3).shape(module) == HeadShape(3, None)
    assert HeadLocation(hook_targets=("proj",), num_heads=3, merged="all").shape(module) == HeadShape(3, 4)


def test_hook_targets_may_depend_on_the_module() -> None:
    location = HeadLocation(hook_targets=lambda module: ("proj",) if module.all == 12 else (), num_heads=3)
    assert location.targets(Attention()) == ("proj",)


def test_the_error_names_what_declared_the_location() -> None:
    with pytest.raises(ValueError, match=r"^its adapter does not fit this Attention: it has no child 'out'"):
        HeadLocation(hook_targets=("out",), num_heads=3).shape(Attention())
    with pytest.raises(ValueError, match=r"^a table does not fit this Attention: 5 heads of 4 make 20"):
        HeadLocation(hook_targets=("proj",), num_heads=5, head_dim=4, source="a table").shape(Attention())
