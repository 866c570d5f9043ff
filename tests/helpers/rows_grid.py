"""The cases in which the Triton kernels of the row work are compared with float64.

Run as a program under `TRITON_INTERPRET=1` it prints what it measured as JSON: {case: {quantity: error / bound}}.
"""

import json
import math
import os
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from preconditioned_attention.ops.rows import triton as rows_triton

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
WIDTHS = (1, 7, 24, 48, 64, 80, 128, 256)
TOKENS = (1, 19)
LAYOUTS = ("kernel", "contiguous", "sliced", "strided")
FLOOR = 2.0**-10
FAR = 2**29  # five times this is more than 32 bits hold
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SUMS = 16  # rounding errors of the wide dtype that sums over a row, roots and quotients are allowed


@dataclass(frozen=True)
class Case:
    dtype: str
    width: int
    tokens: int
    layout: str
    eps: str = "ordinary"

    def __str__(self) -> str:
        return f"{self.dtype}-d{self.width}-n{self.tokens}-{self.layout}-{self.eps}"


def cases() -> list[Case]:
    """Every dtype, head dimension and length, the layouts in turn; and every layout with every dtype."""
    grid = [
        Case(dtype, width, tokens, LAYOUTS[(i + i // len(DTYPES)) % len(LAYOUTS)])
        for i, (width, tokens, dtype) in enumerate(product(WIDTHS, TOKENS, DTYPES))
        if width > 1 or tokens > 1
    ]
    layouts = [Case(dtype, 24, 70, layout) for layout, dtype in product(LAYOUTS, DTYPES)]
    far = [Case("float16", 8, 6, layout) for layout in ("far samples", "far heads", "far tokens")]
    least = [Case(dtype, 24, 9, "kernel", "smallest") for dtype in DTYPES]
    return list(dict.fromkeys(grid + layouts + far + least))


def measure(case: Case, device: str) -> dict[str, float]:
    """The worst error over its bound, at most 1 if all is well, of everything that the kernels return."""
    dtype, eps = DTYPES[case.dtype], threshold(case)
    wide = torch.promote_types(dtype, torch.float32)
    heads, samples = (6, 1) if case.layout == "far heads" else (1, 6) if case.layout == "far samples" else (3, 2)
    if case.layout == "far tokens":
        heads = samples = 1
    tokens = 1 if case.layout in ("far samples", "far heads") else case.tokens
    shape = (samples, heads, tokens, case.width)
    a, a_base = laid_out(awkward_rows(shape, dtype, eps), case.layout, device)
    lse, lse_base = constants(torch.randn(shape[:3], dtype=torch.float64).to(wide), case.layout, device)
    dy = cotangent(shape, dtype, case.layout).to(device)
    old, old_lse = a.clone(), lse.clone()
    around = [(a_base, a_base.clone(), a), (lse_base, lse_base.clone(), lse)] if "far" not in case.layout else []

    versions = a._version, lse._version
    norms = rows_triton.precondition_rows_(a, lse, eps)
    told = a._version > versions[0] and lse._version > versions[1]  # what autograd knows of changes in place
    results = forward_errors(old, old_lse, a, lse, norms, eps)
    results["what lies between"] = max((changed(*each) for each in around), default=0.0)
    results["versions"] = 0.0 if told else math.inf
    return results | backward_errors(dy, a, norms)


def threshold(case: Case) -> float:
    """Numbers that the dtype holds, so that a row can lie exactly on the threshold."""
    if case.eps == "smallest":
        return {"float16": 2.0**-23, "bfloat16": 2.0**-120, "float32": 2.0**-120, "float64": 2.0**-1000}[case.dtype]
    return 2.0**-14 if case.dtype == "float16" else 2.0**-40


def awkward_rows(shape: tuple[int, ...], dtype: torch.dtype, eps: float) -> Tensor:
    """Random rows; some are zero, at the threshold, right above it, tiny, huge, or hold a NaN."""
    a = torch.randn(shape, dtype=torch.float64).to(dtype)
    rows = a.view(-1, shape[-1])
    for i in range(len(rows)):
        kind = i % 9
        if kind in (1, 2, 3, 4):
            rows[i] = 0
        if kind == 2:
            rows[i, -1] = eps
        elif kind == 3:
            rows[i, -1] = -eps * (1 + max(torch.finfo(dtype).eps, 2.0**-24 / eps if dtype == torch.float16 else 0))
        elif kind == 4:
            rows[i] = 8 * eps
        elif kind == 5:
            rows[i] = torch.finfo(dtype).max / 2
        elif kind == 6:
            rows[i, 0] = math.nan
    return a


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype, device=device)


def laid_out(values: Tensor, layout: str, device: str) -> tuple[Tensor, Tensor]:
    """The rows in a layout, and the memory that they lie in."""
    samples, heads, tokens, width = values.shape
    if layout == "contiguous":
        base = poisoned(values.shape, values.dtype, device)
        view = base
    elif layout == "kernel":
        base = poisoned((samples, tokens, heads, width), values.dtype, device)
        view = base.transpose(1, 2)
    elif layout == "sliced":
        base = poisoned((samples, tokens + 3, heads + 1, width + 5), values.dtype, device)
        view = base[:, 2 : tokens + 2, :heads, 3 : width + 3].transpose(1, 2)
    elif layout == "strided":
        base = poisoned((samples, heads, width, 2 * tokens), values.dtype, device)
        view = base[..., ::2].transpose(2, 3)
    else:  # one axis so far apart that offsets need 64 bits; memory that nobody touches takes no room
        base = torch.empty(5 * FAR + width, dtype=values.dtype, device=device)
        view = base.as_strided(values.shape, [FAR if size == 6 else width for size in values.shape[:3]] + [1])
    view.copy_(values)
    return view, base


def constants(values: Tensor, layout: str, device: str) -> tuple[Tensor, Tensor]:
    """The log-sum-exps: padded as memory-efficient attention does it, with the heads last, or plain."""
    samples, heads, tokens = values.shape
    if layout in ("contiguous", "sliced"):
        base = poisoned((samples, heads, -(-tokens // 32) * 32), values.dtype, device)
        view = base[..., :tokens]
    elif layout == "strided":
        base = poisoned((samples, tokens, heads, 2), values.dtype, device)
        view = base[..., 1].transpose(1, 2)
    else:
        base = poisoned(values.shape, values.dtype, device)
        view = base
    view.copy_(values)
    return view, base


def cotangent(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """What autograd passes: in the layout of the output, contiguous, or expanded from less."""
    samples, heads, tokens, width = shape
    if layout == "contiguous":
        return torch.randn(samples, heads, 1, width, dtype=torch.float64).to(dtype).expand(shape)
    if layout == "sliced":
        return torch.randn(1, dtype=torch.float64).to(dtype).expand(shape)
    if layout == "strided":
        return torch.randn(samples, heads, width, tokens, dtype=torch.float64).to(dtype).transpose(2, 3)
    return torch.randn(samples, tokens, heads, width, dtype=torch.float64).to(dtype).transpose(1, 2)


def changed(base: Tensor, before: Tensor, view: Tensor) -> float:
    """Infinite if a bit of ``base`` is not as before, ``view`` of it aside."""
    place = {"size": view.shape, "stride": view.stride(), "storage_offset": view.storage_offset()}
    after = base.clone()
    after.as_strided(**place).copy_(before.as_strided(**place))
    return 0.0 if torch.equal(after.view(torch.uint8), before.view(torch.uint8)) else math.inf


def forward_errors(a: Tensor, lse: Tensor, y: Tensor, new_lse: Tensor, norms: Tensor, eps: float) -> dict[str, float]:
    """Against float64, taking the largest entry out of every row so that float64 itself does not overflow."""
    unit = torch.finfo(norms.dtype).eps
    exact = a.double()
    largest = exact.abs().amax(dim=-1, keepdim=True).masked_fill((exact == 0).all(dim=-1, keepdim=True), 1.0)
    length = (exact / largest).norm(dim=-1, keepdim=True)
    zero = largest * length <= eps
    rows = torch.where(zero, exact, exact / largest / length)
    logs = torch.where(zero, 0.0, largest.log() + length.log()).squeeze(-1)
    added = logs.clamp_min(math.log(FLOOR)) if a.dtype == torch.float16 else logs
    r = torch.where(zero, 1.0, largest * length).squeeze(-1).to(norms.dtype).double()
    constant = lse.double() + added
    unchanged = torch.where(zero, y != a, False).any() or torch.where(zero[..., 0], new_lse != lse, False).any()
    return {
        "rows": excess(y, rows, rounded(rows, y.dtype) + SUMS * unit * rows.abs()),
        "lse": excess(new_lse, constant, unit * (SUMS + 8 * (1 + lse.double().abs() + logs.abs()))),
        "norms": excess(norms, r, SUMS * unit * r),
        "zero rows": math.inf if unchanged else 0.0,
    }


def backward_errors(dy: Tensor, y: Tensor, norms: Tensor) -> dict[str, float]:
    """Both gradients; what comes back has the layout of ``y``."""
    unit = torch.finfo(norms.dtype).eps
    wide_dy, wide_y, r = dy.double(), y.double(), norms.double().unsqueeze(-1)
    half = y.dtype == torch.float16
    ratio = torch.where(r < FLOOR, FLOOR, r) / r if half else torch.ones_like(r)
    along = (wide_dy * wide_y).sum(dim=-1, keepdim=True)
    size = ratio * (wide_dy.abs() + wide_y.abs() * (wide_dy * wide_y).abs().sum(dim=-1, keepdim=True))
    expected = {
        "full: dout": (ratio * (wide_dy - wide_y * along), size),
        "full: out": (torch.zeros_like(wide_y), torch.zeros_like(wide_y)),
        "stop: dout": (ratio * wide_dy, ratio * wide_dy.abs()),
        "stop: out": (r * wide_y, (r * wide_y).abs()),
    }
    full = rows_triton.cotangents(dy, y, norms, full=True)
    stop = rows_triton.cotangents(dy, y, norms, full=False)
    names = [name for name in expected if half or name != "stop: dout"]  # otherwise it is dy itself
    got = dict(zip(names, [*full, *stop], strict=True))
    layout = torch.empty_like(y).stride()
    wrong = any(x.stride() != layout or x.dtype != y.dtype for x in got.values())
    errors = {
        name: excess(x, expected[name][0], rounded(expected[name][0], y.dtype) + SUMS * unit * expected[name][1])
        for name, x in got.items()
    }
    if not half:
        alone, _ = rows_triton.cotangents(dy, y, None, full=True)
        wrong = wrong or not torch.equal(alone.nan_to_num(), full[0].nan_to_num())
    return errors | {"layout": math.inf if wrong else 0.0}


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """How far rounding to ``dtype`` may move ``x``, subnormal numbers included.

    Half a unit; a whole one in bfloat16 under the interpreter, which cuts where GPUs round.
    """
    info = torch.finfo(dtype)
    units = 1.0 if INTERPRETED and dtype == torch.bfloat16 else 0.5
    return (x.abs().clamp_min(info.smallest_normal) * info.eps * units).nan_to_num(posinf=0.0)


def excess(got: Tensor, expected: Tensor, bound: Tensor) -> float:
    """The largest error over its bound; infinite if NaN or infinity is not where it should be."""
    got, finite = got.double(), expected.isfinite()
    if not torch.equal(got.isfinite(), finite) or not torch.equal(got.isnan(), expected.isnan()):
        return math.inf
    error = (got - expected)[finite].abs()
    return torch.where(error > 0, error / bound[finite], 0.0).max().item() if finite.any() else 0.0


def main() -> None:
    torch.manual_seed(0)
    measured = {}
    for case in cases():
        # Uninitialized memory becomes NaN to show unwritten entries; not where most of the memory stays unwritten.
        torch.use_deterministic_algorithms("far" not in case.layout)
        measured[str(case)] = measure(case, "cpu")
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
