"""An independent reference: unconverted attention that is made to normalize inside itself.

While an attention module's own forward runs, every function it calls is watched. What a softmax returns is attention
weights, and so is what is made of weights (dropout, mixing of heads, sums with other weights). The product of weights
and something else is the heads' outputs, and it is normalized there and then, as is what
`F.scaled_dot_product_attention` returns. Nothing is known of the module's projections, layouts or hooks.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.report import ConversionReport
from preconditioned_attention.selection import DEFAULT_INCLUDE, Include
from tests.helpers.explicit import relative_error

PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum"}


class NormalizingMode(TorchFunctionMode):
    """Normalizes every head's rows where they arise; ``widths`` collects how wide they were."""

    def __init__(self, *, channels: bool) -> None:
        super().__init__()
        self.channels = channels  # attention over channels: what the weights mix is the entries of a token's row
        self.widths: list[int] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":
            raise NotImplementedError("this function hides its softmax and its product; write the reference by hand")
        if name == "scaled_dot_product_attention":
            return self._normalized(func(*args, **kwargs), weights_first=True)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        weights = [_is_weights(tensor) for tensor in tensors]
        if name in PRODUCTS and any(weights):
            assert len(tensors) == 2
            assert not all(weights), "a product of attention weights with attention weights"
            return self._normalized(func(*args, **kwargs), weights_first=weights[0])
        out = func(*args, **kwargs)
        return tree_map_only(Tensor, _as_weights, out) if name == "softmax" or any(weights) else out

    def _normalized(self, product: Tensor, weights_first: bool) -> Tensor:
        """The rows are along the last axis of weights @ values and the last but one of values @ weights^T."""
        product = product if weights_first != self.channels else product.transpose(-2, -1)
        self.widths.append(product.shape[-1])
        norms = product.square().sum(dim=-1, keepdim=True).sqrt()
        rows = product / torch.where(norms <= 1e-12, 1.0, norms)
        return rows if weights_first != self.channels else rows.transpose(-2, -1).contiguous()


def _is_weights(tensor: Tensor) -> bool:
    return getattr(tensor, "is_attention_weights", False)


def _as_weights(tensor: Tensor) -> Tensor:
    tensor.is_attention_weights = True
    return tensor


@contextmanager
def normalizing_inside(model: nn.Module, *classes: type[nn.Module], channels: bool = False) -> Iterator[list[int]]:
    """Make every module of ``classes`` in ``model`` normalize inside itself for the time being.

    Args:
        model: what holds them, or is one.
        classes: exact classes, not their subclasses.
        channels: whether these are attention over channels.

    Yields:
        The widths of the rows that were normalized, one for each time, in order.
    """
    mode = NormalizingMode(channels=channels)
    with ExitStack() as stack:
        for module in model.modules():
            if type(module) in classes:
                # An attribute of the instance comes before the method of its class.
                module.forward = functools.partial(_run, mode, module.forward)
                stack.callback(delattr, module, "forward")
        yield mode.widths


def _run(mode: NormalizingMode, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with mode:
        return forward(*args, **kwargs)


def jitter_(model: nn.Module, scale: float = 0.2) -> nn.Module:
    """Move every parameter a little, so that nothing that starts at zero hides an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


@dataclass(frozen=True)
class Proof:
    """How a converted attention module compares: relative errors, and how wide its rows are."""

    error: float
    effect: float
    widths: set[int]
    report: ConversionReport


def compare(
    module: nn.Module,
    *args: Any,
    config: PreconditionConfig | None = None,
    include: Include = DEFAULT_INCLUDE,
    channels: bool = False,
    reference: Callable[..., Tensor] | None = None,
) -> Proof:
    """Hold ``module``, converted, against a reference in its present mode; a copy of it is converted.

    Args:
        module: unconverted attention.
        args: what it is called with.
        config, include: for the conversion.
        channels: whether it is attention over channels.
        reference: ``reference(module, *args)`` where the watching reference does not know the definition.

    Raises:
        AssertionError: restored, the module is not what it was, bit for bit.
    """
    plain, inside, converted = (copy.deepcopy(module) for _ in range(3))
    before = _output(plain, *args)
    if reference is None:
        with normalizing_inside(inside, type(module), channels=channels) as widths:
            expected = _output(inside, *args)
    else:
        expected, widths = _output(functools.partial(reference, inside), *args), []
    report = precondition_(converted, config, include=include)
    error = relative_error(_output(converted, *args), expected)
    restore_(converted)
    assert type(converted) is type(module)
    # Batch statistics have moved in train mode; nothing else may have.
    assert converted.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(_output(converted, *args), before)
    return Proof(error, relative_error(before, expected), set(widths), report)


def _output(run: Callable[..., Any], *args: Any) -> Tensor:
    """The first thing returned, with the same random numbers drawn each time."""
    torch.manual_seed(1)
    out = run(*args)
    return out if isinstance(out, Tensor) else out[0]
