"""Error budgets of the backends, relative to the rounding errors of plain attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

from preconditioned_attention import preconditioned_attention
from tests.helpers.explicit import attention_rows, diagonal_product


def packed(
    batch: int, heads: int, length: int, d: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[Tensor]:
    """q, k and v as one projection gives them: views of one tensor, heads not contiguous."""
    qkv = torch.randn(batch, length, 3, heads, d, dtype=torch.float64, device=device).to(dtype)
    return [x.detach().requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4)]


def budgets(
    inputs: list[Tensor], weight: Tensor, mask: Tensor | None, gradient: str, backend: str, **options
) -> list[tuple[Tensor, Tensor]]:
    """Relative errors of our output and gradients in low precision, and what each may be at most.

    The yardstick is what rounding does to plain attention and to its composition with the row scaling, whichever
    is larger; twice that, and one rounding unit.
    """
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    rows = attention_rows(*exact_inputs, mask=mask)
    exact = {"plain": rows, "ours": diagonal_product(rows, constant=gradient == "stop")}
    low = {
        "plain": F.scaled_dot_product_attention(*inputs, **options),
        "composition": preconditioned_attention(*inputs, **options, gradient=gradient, backend="composition"),
        "ours": preconditioned_attention(*inputs, **options, gradient=gradient, backend=backend),
    }
    errors = {}
    for name, out in low.items():
        wanted = exact["plain" if name == "plain" else "ours"]
        exact_grads = torch.autograd.grad((wanted * weight).sum(), exact_inputs, retain_graph=True)
        grads = torch.autograd.grad((out * weight.to(out.dtype)).sum(), inputs)
        pairs = zip([out, *grads], [wanted, *exact_grads], strict=True)
        errors[name] = [(actual.double() - wanted).norm() / wanted.norm().clamp_min(1e-30) for actual, wanted in pairs]
    unit = torch.finfo(inputs[0].dtype).eps
    allowed = [2 * max(p, c) + unit for p, c in zip(errors["plain"], errors["composition"], strict=True)]
    return list(zip(errors["ours"], allowed, strict=True))
