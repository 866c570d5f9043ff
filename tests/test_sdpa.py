"""PyTorch's own samples for `scaled_dot_product_attention`: those of its `OpInfo`, and the kinds of its suite."""

import itertools
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

from preconditioned_attention import preconditioned_attention
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error

BACKENDS = ["auto", "composition", "reference"]
GRADIENTS = ["full", "stop"]
LOW = [torch.float32, torch.bfloat16, torch.float16]


class Sample:
    """q, k, v, perhaps a mask, and the options of one call; every number is drawn from the same state."""

    def __init__(self, tensors: list[Tensor], options: dict[str, Any]) -> None:
        self.tensors, self.options = tensors, options

    def call(self, function: Callable[..., Tensor], *tensors: Tensor, **more: Any) -> Tensor:
        torch.manual_seed(42)
        q, k, v, *mask = tensors or self.tensors
        return function(q, k, v, *mask, **self.options, **more)

    def to(self, dtype: torch.dtype) -> "Sample":
        return Sample([x.detach().to(dtype).requires_grad_() for x in self.tensors], self.options)

    def explicit(self, *tensors: Tensor, gradient: str = "full") -> Tensor:
        """Without dropout by this suite's own words, with it by plain attention's weights, and the diagonal matrix."""
        if self.options["dropout_p"] > 0:
            rows = self.call(F.scaled_dot_product_attention, *tensors)
        else:
            q, k, v, *mask = tensors
            causal = (
                torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril() if self.options["is_causal"] else None
            )
            rows = attention_rows(q, k, v, mask[0] if mask else causal)
        return diagonal_product(rows, constant=gradient == "stop")


@cache
def samples(dtype: torch.dtype = torch.float64) -> list[Sample]:
    from torch.testing._internal.common_methods_invocations import op_db

    (entry,) = (op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention")
    torch.manual_seed(0)
    found = []
    for given in entry.sample_inputs("cpu", dtype, requires_grad=True):
        options = {"dropout_p": 0.0, "is_causal": False, "enable_gqa": False} | given.kwargs
        mask = options.pop("attn_mask", None)
        found.append(Sample([given.input, *given.args, *([] if mask is None else [mask])], options))
    return found


INDICES = range(25)


def test_there_are_as_many_samples_as_are_tested() -> None:
    assert len(samples()) == len(INDICES)
    assert any(len(s.tensors) == 4 for s in samples())
    assert {s.options["dropout_p"] for s in samples()} == {0.0, 0.5}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", INDICES)
def test_outputs_and_gradients(index: int, backend: str, gradient: str) -> None:
    sample = samples()[index]
    if backend == "reference" and sample.options["dropout_p"] > 0:
        return  # its mask is another one
    out = sample.call(preconditioned_attention, backend=backend, gradient=gradient)
    expected = sample.explicit(*sample.tensors, gradient=gradient)
    assert out.shape == expected.shape
    assert relative_error(out, expected) <= 1e-13
    weight = torch.randn_like(out)
    grads = (torch.autograd.grad((y * weight).sum(), sample.tensors) for y in (out, expected))
    for actual, wanted in zip(*grads, strict=True):
        assert (actual - wanted).norm() <= 1e-12 * (1 + wanted.norm())


def rounded_terms(sample: Sample, weight: Tensor) -> list[float]:
    """What one rounding of `G` and of `Y` may do to the gradients of q and k, float64: a norm for each, over the unit.

    They are sums of `P_ij <G_i, v_j - A_i> / r_i`, whose factors are large and whose differences are small where a
    softmax is saturated: the samples' entries go up to 9. The re-normalized form does not have `A` before rounding.
    """
    q, k, v, *mask = (x.detach() for x in sample.to(torch.float64).tensors)
    causal = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril() if sample.options["is_causal"] else None
    eye = torch.eye(k.shape[-2], dtype=torch.float64).expand(*k.shape[:-1], -1)
    weights = attention_rows(q, k, eye, mask[0] if mask else causal)
    rows = weights @ v
    lengths = weight.double().norm(dim=-1, keepdim=True) / rows.norm(dim=-1, keepdim=True)
    terms = weights * lengths * (v.norm(dim=-1)[..., None, :] + rows.norm(dim=-1, keepdim=True)) / q.shape[-1] ** 0.5
    dq, dk = terms @ k.norm(dim=-1, keepdim=True), terms.mT @ q.norm(dim=-1, keepdim=True)
    return [0.0, dq.norm().item(), dk.norm().item(), 0.0, dq.norm().item()]


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("index", INDICES)
def test_low_precision(index: int, dtype: torch.dtype) -> None:
    """At most twice the error of plain attention or of the composition, and one rounding of what is added up."""
    sample = samples(dtype)[index]
    if sample.options["dropout_p"] > 0:  # float64 draws another mask
        out, composed = (sample.call(preconditioned_attention, backend=b) for b in ("auto", "composition"))
        assert torch.equal(out, composed)
        return
    exact = sample.to(torch.float64)
    weight = torch.randn(exact.call(F.scaled_dot_product_attention).shape, dtype=torch.float64).to(dtype)
    errors, sizes = {}, [0.0]
    for name, function, wanted in (
        ("plain", F.scaled_dot_product_attention, exact.call(F.scaled_dot_product_attention)),
        ("composition", partial(preconditioned_attention, backend="composition"), exact.explicit(*exact.tensors)),
        ("ours", preconditioned_attention, exact.explicit(*exact.tensors)),
    ):
        out = sample.call(function)
        grads = torch.autograd.grad(out, sample.tensors, weight)
        exact_grads = torch.autograd.grad(wanted, exact.tensors, weight.double())
        sizes = [x.norm().item() for x in (wanted, *exact_grads)]
        errors[name] = [
            relative_error(a.double(), e) for a, e in zip([out, *grads], [wanted, *exact_grads], strict=True)
        ]
    unit = torch.finfo(dtype).eps
    for i, terms in enumerate(rounded_terms(sample, weight)[: len(sizes)]):
        allowed = 2 * max(errors["plain"][i], errors["composition"][i]) + unit * (1 + terms / sizes[i])
        assert errors["ours"][i] <= allowed


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("index", INDICES)
def test_numerical_first_and_second_derivatives(index: int, gain: bool) -> None:
    """Re-normalized where a kernel supports the sample; PyTorch's math kernel has both, and forward mode."""
    sample = samples()[index]
    heads = sample.tensors[0].shape[-3]
    factors = [torch.linspace(-1.5, 2.0, heads, dtype=torch.float64).requires_grad_()] if gain else []

    def attend(*x: Tensor) -> Tensor:
        more = {"gain": x[-1]} if gain else {}
        return sample.call(preconditioned_attention, *x[: len(sample.tensors)], **more)

    leaves = (*sample.tensors, *factors)
    if len(sample.tensors) == 3 and sample.options["dropout_p"] == 0:
        assert gradcheck(attend, leaves, fast_mode=True)
        served_again = all(x.dim() == 4 for x in sample.tensors)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if served_again else SDPBackend.MATH):
            assert gradgradcheck(attend, leaves, fast_mode=True)
    with sdpa_kernel(SDPBackend.MATH):
        assert gradcheck(attend, leaves, fast_mode=True, check_forward_ad=True)
        assert gradgradcheck(attend, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", INDICES)
def test_fake_and_meta_tensors(index: int, backend: str) -> None:
    """Shape, strides and dtype without values are those with values, and those of plain attention."""
    for dtype in (torch.float64, torch.bfloat16):
        sample = samples(dtype)[index]
        real = sample.call(preconditioned_attention, backend=backend)
        plain = sample.call(F.scaled_dot_product_attention)
        assert (real.shape, real.dtype) == (plain.shape, plain.dtype)
        assert backend == "reference" or real.stride() == plain.stride()
        with FakeTensorMode() as mode:
            out = without_values(sample, [mode.from_tensor(x) for x in sample.tensors], backend)
        assert (out.shape, out.stride(), out.dtype) == (real.shape, real.stride(), real.dtype)
        out = without_values(sample, [x.detach().to("meta").requires_grad_() for x in sample.tensors], backend)
        assert (out.shape, out.dtype, out.device.type) == (real.shape, real.dtype, "meta")


def without_values(sample: Sample, leaves: list[Tensor], backend: str) -> Tensor:
    out = sample.call(preconditioned_attention, *leaves, backend=backend)
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert (grad.shape, grad.dtype, grad.device) == (leaf.shape, leaf.dtype, leaf.device)
    return out


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("index", INDICES)
def test_vmap(index: int, gradient: str) -> None:
    """Over a new first axis, of outputs and of gradients."""
    sample = samples()[index]
    if sample.options["dropout_p"] > 0:
        return
    stacked = [torch.stack([x.detach(), x.detach().flip(-1), x.detach() * 2]) for x in sample.tensors]
    attend = partial(sample.call, preconditioned_attention, gradient=gradient)
    singles = [x.unbind() for x in stacked]
    expected = torch.stack([attend(*x) for x in zip(*singles, strict=True)])
    assert relative_error(torch.func.vmap(attend)(*stacked), expected) <= 1e-13

    def loss(*x: Tensor) -> Tensor:
        return attend(*x).pow(3).sum()

    mapped = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*stacked)
    leaves = [x.requires_grad_() for x in stacked]
    one_by_one = sum(loss(*x) for x in zip(*(x.unbind() for x in leaves), strict=True))
    for actual, wanted in zip(mapped, torch.autograd.grad(one_by_one, leaves[:3]), strict=True):
        assert (actual - wanted).norm() <= 1e-12 * (1 + wanted.norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", INDICES)
def test_layouts_and_inference(index: int, backend: str) -> None:
    """Holes between the entries, every axis order, and no gradient wanted: the same numbers."""
    sample = samples()[index]
    expected = sample.call(preconditioned_attention, backend=backend)
    holes = [torch.stack([x.detach(), x.detach() * math.nan], dim=-1)[..., 0].requires_grad_() for x in sample.tensors]
    swapped = [x.detach().transpose(-3, -2).contiguous().transpose(-3, -2).requires_grad_() for x in sample.tensors[:3]]
    for tensors in (holes, [*swapped, *sample.tensors[3:]]):
        out = sample.call(preconditioned_attention, *tensors, backend=backend)
        assert relative_error(out, expected) <= 1e-14
        grads = [
            torch.autograd.grad(y.cos().sum(), x, retain_graph=True)
            for y, x in ((out, tensors), (expected, sample.tensors))
        ]
        assert all((a - e).norm() <= 1e-13 * (1 + e.norm()) for a, e in zip(*grads, strict=True))
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert relative_error(sample.call(preconditioned_attention, backend=backend), expected) <= 1e-15


def qkv(shape: tuple[int, ...], keys: int | None = None) -> list[Tensor]:
    other = (*shape[:-2], shape[-2] if keys is None else keys, shape[-1])
    return [torch.randn(s, dtype=torch.float64).requires_grad_() for s in (shape, other, other)]


def same_as_explicit(leaves: list[Tensor], mask: Tensor | None, gradient: str, backend: str, **options: Any) -> None:
    learned = [mask] if mask is not None and mask.requires_grad else []
    out = preconditioned_attention(*leaves, mask, gradient=gradient, backend=backend, **options)
    expected = diagonal_product(attention_rows(*leaves, mask, options.get("scale")), constant=gradient == "stop")
    assert relative_error(out, expected) <= 1e-12
    weight = torch.randn_like(out)
    wanted = [*leaves, *learned]
    grads = (torch.autograd.grad((y * weight).sum(), wanted) for y in (out, expected))
    assert all((a - e).norm() <= 1e-11 * (1 + e.norm()) for a, e in zip(*grads, strict=True))


MASKS = [(3, 5), (1, 5), (3, 1), (1, 1), (4, 3, 5), (1, 3, 5), (2, 1, 1, 5), (1, 4, 3, 5), (2, 4, 3, 5), (2, 4, 1, 1)]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["boolean", "float", "learned", "strided", "expanded"])
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_masks_of_every_shape(shape: tuple[int, ...], kind: str, backend: str, gradient: str) -> None:
    mask = torch.randn(shape, dtype=torch.float64)
    mask = {
        "boolean": mask > -0.5,
        "float": mask,
        "learned": mask.clone().requires_grad_(),
        "strided": torch.stack([mask, mask * math.nan], dim=-1)[..., 0],
        "expanded": mask[..., :1].expand(shape),
    }[kind]
    same_as_explicit(qkv((2, 4, 3, 8), keys=5), mask, gradient, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [1, 2, 3, 5, 7, 9, 17, 63, 65, 257])
def test_unaligned_head_dimensions(d: int, backend: str) -> None:
    for gradient in GRADIENTS:
        same_as_explicit(qkv((1, 2, 4, d), keys=6), None, gradient, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-8, 30.0])
def test_unusual_scales(scale: float, backend: str) -> None:
    for gradient in GRADIENTS:
        same_as_explicit(qkv((1, 2, 4, 8)), None, gradient, backend, scale=scale)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_strides_of_zero(which: int, axis: int, backend: str) -> None:
    for gradient in GRADIENTS:
        leaves = qkv((2, 3, 4, 8))
        with torch.no_grad():
            leaves[which] = leaves[which].narrow(axis, 0, 1).expand(2, 3, 4, 8)
        leaves[which].requires_grad_()
        same_as_explicit(leaves, None, gradient, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_heads_long_batches_and_no_batch(backend: str) -> None:
    for shape in ((1, 300, 2, 4), (700, 1, 2, 4), (3, 5, 8), (5, 8), (2, 2, 3, 4, 8)):
        leaves = qkv(shape)
        if len(shape) == 2:
            out = preconditioned_attention(*leaves, backend=backend)
            expected = diagonal_product(attention_rows(*(x[None] for x in leaves)))[0]
            assert relative_error(out, expected) <= 1e-12
        else:
            same_as_explicit(leaves, None, "full", backend)


@pytest.mark.parametrize("backend", [*BACKENDS, "flash"])
def test_dtypes_that_differ_are_refused(backend: str) -> None:
    for low, which in itertools.product((torch.float32, torch.bfloat16), range(3)):
        tensors = [x.detach() for x in qkv((1, 2, 3, 8))]
        tensors[which] = tensors[which].to(low)
        with pytest.raises(ValueError, match="q, k and v must have one dtype"):
            preconditioned_attention(*tensors, backend=backend)
        with pytest.raises(RuntimeError):
            F.scaled_dot_product_attention(*tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_deterministic_algorithms_give_the_same_twice(backend: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        leaves = qkv((2, 4, 33, 16))
        first, second = (
            torch.autograd.grad(preconditioned_attention(*leaves, is_causal=True, backend=backend).cos().sum(), leaves)
            for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
