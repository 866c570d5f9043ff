"""The row work as operators of PyTorch's dispatcher, `torch.ops.preconditioned_attention`: CPU, GPU and fake tensors.

What calls them works under FakeTensorMode, `make_fx`, `torch.export` and `torch.compile`. They have no derivative:
`flash.autograd` calls them inside an autograd function. `torch.library.Library` costs 3 microseconds a call where
`torch.library.custom_op` costs 10.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import cpu, formula

_LIBRARY = torch.library.Library("preconditioned_attention", "DEF")
_COMPILES = torch.Tag.pt2_compliant_tag
_LIBRARY.define("precondition_rows_(Tensor(a!) a, Tensor(b!) lse, float eps) -> Tensor", tags=_COMPILES)
_LIBRARY.define("cotangents(Tensor dy, Tensor y, Tensor? norms, bool full) -> Tensor[]", tags=_COMPILES)
_LIBRARY.define(
    "overflowed_rows_(Tensor(a!) a, Tensor(b!) lse, Tensor(c!) norms, float eps) -> ()",
    tags=(_COMPILES, torch.Tag.needs_exact_strides),
)

precondition_rows_: Any = torch.ops.preconditioned_attention.precondition_rows_.default
"""`(a, lse, eps) -> norms`, as :func:`.rows.precondition_rows_`; the norms are contiguous."""

cotangents: Any = torch.ops.preconditioned_attention.cotangents.default
"""`(dy, y, norms, full)`: `dout`, unless it is ``dy``, and `out` of :func:`.rows.cotangents`, laid out as ``y``."""


def launch_once(x: Tensor) -> bool:
    """Whether the operators do the work on ``x`` in one launch each; a compiler fuses the formula as well as that."""
    return x.is_cuda and type(x) is Tensor and not torch.compiler.is_compiling() and _kernels(x.device) is not None


@functools.cache
def _kernels(device: torch.device) -> ModuleType | None:
    """The kernels for this GPU; None where Triton is not installed or does not support the GPU."""
    if find_spec("triton") is None:
        return None
    from . import triton

    return triton if triton.available(device) else None


def _precondition_rows_by_torch(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    return cpu.precondition_rows_(a, lse, eps).contiguous()


def _precondition_rows_on_gpu(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    kernels = _kernels(a.device)
    if kernels is None:
        return _precondition_rows_by_torch(a, lse, eps)
    norms: Tensor = kernels.precondition_rows_(a, lse, eps)
    return norms


def _precondition_rows_fake(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    return a.new_empty(a.shape[:3], dtype=torch.promote_types(a.dtype, torch.float32))


def _cotangents_by_torch(dy: Tensor, y: Tensor, norms: Tensor | None, full: bool) -> list[Tensor]:
    results = cpu.cotangents(dy, y, norms, full=full)
    return [torch.zeros_like(y) if x is None else torch.empty_like(y).copy_(x) for x in results if x is not dy]


def _cotangents_on_gpu(dy: Tensor, y: Tensor, norms: Tensor | None, full: bool) -> list[Tensor]:
    kernels = _kernels(y.device)
    if kernels is None:
        return _cotangents_by_torch(dy, y, norms, full)
    results: list[Tensor] = kernels.cotangents(dy, y, norms, full=full)
    return results


def _cotangents_fake(dy: Tensor, y: Tensor, norms: Tensor | None, full: bool) -> list[Tensor]:
    return [torch.empty_like(y) for _ in range(2 if full or y.dtype == torch.float16 else 1)]


_LIBRARY.impl("precondition_rows_", _precondition_rows_by_torch, "CPU")
_LIBRARY.impl("precondition_rows_", _precondition_rows_on_gpu, "CUDA")
_LIBRARY.impl("cotangents", _cotangents_by_torch, "CPU")
_LIBRARY.impl("cotangents", _cotangents_on_gpu, "CUDA")
_LIBRARY.impl("overflowed_rows_", formula.overflowed_rows_, "CPU")
torch.library.register_fake("preconditioned_attention::overflowed_rows_", lambda *_: None, lib=_LIBRARY)
torch.library.register_fake(precondition_rows_, _precondition_rows_fake, lib=_LIBRARY)
torch.library.register_fake(cotangents, _cotangents_fake, lib=_LIBRARY)
