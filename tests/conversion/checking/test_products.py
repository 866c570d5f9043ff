import torch
from torch import Tensor, nn

from preconditioned_attention.conversion.checking.products import Product, heads_of_attention, watch_products


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(x @ x.mT, dim=-1)
        out = weights @ x
        out += 1  # in place, behind the product
        return self.proj(out)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0] + self.inner(x)


X = torch.randn(2, 3, 4)


def test_products_are_told_by_module_and_by_what_went_into_them() -> None:
    model = Outer()
    with torch.no_grad(), watch_products({"": model, "inner": model.inner}) as products:
        model(X)
    assert [(p.of_weights, p.fused) for p in products[""]] == [(True, True)]
    assert [(p.of_weights, p.fused) for p in products["inner"]] == [(False, False), (True, False)]
    torch.testing.assert_close(products["inner"][1].out, torch.softmax(X @ X.mT, dim=-1) @ X)
    assert not model._forward_hooks
    assert not model.inner._forward_pre_hooks


def test_what_is_edited_goes_on() -> None:
    model = Inner()
    x = torch.randn(3, 4)
    expected = model.proj(2 * torch.softmax(x @ x.mT, dim=-1) @ x + 1)
    with watch_products({"a": model}, lambda path, index, out: 2 * out if index == 1 else out):
        out = model(x)
    torch.testing.assert_close(out, expected)


def test_without_a_softmax_any_product_may_be_the_one() -> None:
    scores, heads = Product(X, False, False), Product(X, True, False)
    assert heads_of_attention([scores, heads]) == ({1: heads}, True)
    assert heads_of_attention([scores]) == ({0: scores}, False)
    assert heads_of_attention([]) == ({}, False)
