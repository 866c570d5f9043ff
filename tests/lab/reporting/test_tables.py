import io
import math

import pytest
from rich.console import Console

from preconditioned_attention.lab.reporting import Table, decimals_for, format_number, print_table


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (None, {}, "–"),
        (0.123456, {}, "0.1235"),
        (6680.0, {}, "6680"),
        (-0.5, {"decimals": 2}, "−0.50"),
        (0.5, {"decimals": 2, "sign": True}, "+0.50"),
        (0.0, {"decimals": 2, "sign": True}, "0.00"),
        (-0.0001, {"decimals": 2}, "0.00"),
        (0.0001, {"decimals": 2, "sign": True}, "0.00"),
        (math.inf, {}, "∞"),
        (-math.inf, {}, "−∞"),
        (math.nan, {}, "not a number"),
    ],
)
def test_numbers_as_text(value, options, text):
    assert format_number(value, **options) == text


@pytest.mark.parametrize(
    ("values", "decimals"),
    [([0.97, 0.1], 4), ([23.4], 2), ([12345.0], 0), ([0.0], 4), ([1e-12], 8), ([math.inf, 1.0], 3), ([], 4)],
)
def test_decimals_follow_the_largest_value(values, decimals):
    assert decimals_for(values) == decimals


def test_rows_must_fit_the_header():
    with pytest.raises(ValueError, match="rows must have 2 cells"):
        Table(title="t", columns=("a", "b"), rows=(("1",),))


def test_terminal_table_holds_every_cell_unchanged():
    # Square brackets would be markup to rich.
    table = Table(
        title="Title [x]", columns=("name [y]", "value"), rows=(("[red]arm", "0.5"), ("other", "∞")), note="Note [z]."
    )
    console = Console(file=io.StringIO(), width=100)
    print_table(table, console)
    shown = console.file.getvalue()
    for text in ("Title [x]", "name [y]", "[red]arm", "0.5", "∞", "Note [z]."):
        assert text in shown


def test_a_file_gets_a_wide_table():
    table = Table(title="t", columns=("c",) * 6, rows=(("x" * 15,) * 6,))
    console = Console(file=io.StringIO())
    print_table(table, console)
    assert console.file.getvalue().count("x" * 15) == 6
