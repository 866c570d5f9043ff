import pytest
import torch
from torch import Tensor

from preconditioned_attention.conversion.checking.products import Product
from preconditioned_attention.conversion.checking.row_matching import match_rows, same_numbers, tolerance


def product(out: Tensor, fused: bool = False) -> dict[int, Product]:
    return {3: Product(out, True, fused)}


ROWS = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))  # (B, H, N, d)


@pytest.mark.parametrize(
    ("out", "axis"),
    {
        "as they are": (ROWS, -1),
        "batch and heads folded": (ROWS.flatten(0, 1), -1),
        "transposed": (ROWS.mT, -2),
        "heads behind tokens": (ROWS.transpose(1, 2), -1),
        "heads and tokens folded": (ROWS.flatten(1, 2), -1),
        "in another order": (ROWS.flip(2), -1),
        "along another axis": (ROWS.movedim(-1, 0), -4),
    }.values(),
)
def test_rows_are_found_wherever_they_lie(out: Tensor, axis: int) -> None:
    match = match_rows([ROWS], product(out), 4)
    assert (match.found, match.looked_at, match.seen, match.axes) == (48, 48, 48, {3: axis})
    assert match.proven
    assert match.labeled is True
    assert not match.alike


def test_several_streams_of_one_product_and_several_products_of_one_stream() -> None:
    first, second = ROWS.split([2, 4], dim=2)
    assert match_rows([first, second], product(ROWS), 4).proven
    assert match_rows([ROWS], {0: Product(first, True, True), 7: Product(second, True, True)}, 4).axes == {0: -1, 7: -1}


def test_rows_of_several_widths() -> None:
    other = torch.randn(2, 4, 6, 3)
    match = match_rows([ROWS, other], {0: Product(ROWS, True, True), 1: Product(other, True, True)}, 4)
    assert match.found == match.seen == 96
    assert match_rows([ROWS, other], product(ROWS), 4).found == 48


def test_rows_that_are_nearly_equal_are_told_apart() -> None:
    """In float64, where sharp attention hands several tokens one value but for 1e-9 of others."""
    rows = 5 + 1e-9 * torch.randn(2, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    match = match_rows([rows], product(rows), 4)
    assert match.proven
    assert match.labeled is True


def test_other_rows_are_not_found() -> None:
    assert match_rows([ROWS + 1e-2], product(ROWS), 4).found == 0
    assert match_rows([ROWS[..., :4]], product(ROWS), 4).axes == {}
    assert not match_rows([ROWS], {}, 4).proven


def test_heads_that_are_mixed_are_told() -> None:
    """`(B, H, N, d)` read as `(B, N, H, d)`: right rows, wrong heads; also where N is a multiple of H."""
    for tokens in (6, 8, 4):
        rows = torch.randn(2, 4, tokens, 5)
        mixed = rows.reshape(2, tokens, 4, 5).transpose(1, 2)
        assert match_rows([mixed], product(rows), 4).labeled is False
        assert match_rows([mixed], product(rows), None).labeled is None
    assert match_rows([ROWS.flatten(0, 1)[None]], product(ROWS), 4).labeled is False


def test_a_product_for_each_head() -> None:
    one_by_one = {i: Product(ROWS[:, i], True, False) for i in range(4)}
    assert match_rows([ROWS], one_by_one, 4).labeled is True
    assert match_rows([ROWS.reshape(2, 6, 4, 5).transpose(1, 2)], one_by_one, 4).labeled is False


def test_rows_that_heads_share_tell_nothing_of_heads() -> None:
    shared = ROWS.clone()
    shared[:, :, 0] = shared[:, :1, 0]
    assert match_rows([shared], product(shared.flatten(1, 2)), 4).labeled is True
    assert match_rows([ROWS[:, :1].expand(2, 4, 6, 5)], product(ROWS[:, :1].expand(2, 4, 6, 5)), 4).labeled is None


def test_zero_rows_are_nobodys_and_equal_tokens_are_alike() -> None:
    padded = torch.cat([ROWS, torch.zeros(2, 4, 3, 5)], dim=2)
    assert match_rows([padded], product(ROWS), 4).seen == 48
    assert match_rows([torch.zeros(1, 2, 3, 5)], product(ROWS), 2).looked_at == 0
    assert match_rows([ROWS[:, :, :1].expand(2, 4, 6, 5)], product(ROWS), 4).alike


def test_heads_that_a_fused_kernel_was_handed_padded() -> None:
    padded = torch.nn.functional.pad(ROWS, (0, 3))
    assert match_rows([ROWS], product(padded, fused=True), 4).proven
    assert not match_rows([ROWS], product(torch.nn.functional.pad(ROWS, (0, 3), value=1.0), fused=True), 4).proven


def test_the_same_numbers_in_other_rows() -> None:
    assert not same_numbers([ROWS], {})
    assert same_numbers([ROWS.reshape(2, 4, 5, 6)], product(ROWS))
    assert not same_numbers([ROWS + 1], product(ROWS))


def test_tolerance() -> None:
    assert tolerance(torch.float64) < tolerance(torch.float32) < tolerance(torch.bfloat16) == 0.05
