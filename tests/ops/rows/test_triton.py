import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="the kernels need Triton")
GPUTarget = pytest.importorskip("triton.backends.compiler").GPUTarget
ASTSource = pytest.importorskip("triton.compiler").ASTSource
rows_triton = pytest.importorskip("preconditioned_attention.ops.rows.triton")
rows_grid = pytest.importorskip("tests.helpers.rows_grid")

ROOT = Path(__file__).parents[2]
TRITON_NAMES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}


def beyond_bounds(measured: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"{case}: {quantity} {value:.3g} times its bound"
        for case, quantities in measured.items()
        for quantity, value in quantities.items()
        if not value <= 1
    ]


def test_against_float64_by_the_interpreter() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    program = [sys.executable, rows_grid.__file__]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert len(measured) == len(rows_grid.cases())
    assert beyond_bounds(measured) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; the interpreter runs the same cases")
def test_against_float64_on_a_gpu() -> None:
    measured = {str(case): rows_grid.measure(case, "cuda") for case in rows_grid.cases()}
    assert beyond_bounds(measured) == []


def compiled(kernel: Any, tensors: dict[str, str], constants: dict[str, Any], target: Any) -> dict[str, Any]:
    """The kernel in every language on its way to a GPU that need not be there; strides are multiples of 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else tensors.get(name, "i32") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in constants and name not in ("heads", "tokens")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    asm: dict[str, Any] = triton.compile(source, target=target).asm
    return asm


def block(width: int) -> dict[str, int]:
    return rows_triton._launch(2, 3, 100, width)[1]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize("dtype", TRITON_NAMES)
def test_forward_compiles(dtype: str, capability: int) -> None:
    name, wide = TRITON_NAMES[dtype], "fp64" if dtype == "float64" else "fp32"
    tensors = {"a": f"*{name}", "lse": f"*{wide}", "norms": f"*{wide}"}
    floor = 2.0**-10 if dtype == "float16" else None
    constants = {"EPS": 1e-12, "FLOOR": floor, "a_d": 1, "lse_n": 1} | block(24)
    ptx = compiled(rows_triton._precondition_rows_kernel, tensors, constants, GPUTarget("cuda", capability, 32))["ptx"]
    assert re.search(r"ld\.global\.v[24]", ptx), "rows are not read in wide loads"
    assert ("sqrt.rn.f64" if dtype == "float64" else "sqrt.rn.f32") in ptx
    if dtype == "bfloat16" and capability >= 90:
        assert "cvt.rn.bf16" in ptx  # the interpreter cuts, and cannot show that the GPU rounds


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dtype", TRITON_NAMES)
def test_backward_compiles(dtype: str, full: bool) -> None:
    name, wide = TRITON_NAMES[dtype], "fp64" if dtype == "float64" else "fp32"
    half = dtype == "float16"
    tensors = {"dy": f"*{name}", "y": f"*{name}", "dout": f"*{name}", "out": f"*{name}", "norms": f"*{wide}"}
    constants = {"FULL": full, "FLOOR": 2.0**-10 if half else None, "y_d": 1, "out_d": 1} | block(80)
    if not full and not half:
        constants["dout"] = None
    kernel = rows_triton._cotangents_kernel
    ptx = compiled(kernel, tensors, constants, GPUTarget("cuda", 90, 32))["ptx"]
    assert re.search(r"ld\.global\.v[24]", ptx), "rows are not read in wide loads"
    assert re.search(r"st\.global\.v[24]", ptx), "rows are not written in wide stores"
    assert "hsaco" in compiled(kernel, tensors, constants, GPUTarget("hip", "gfx942", 64))


@pytest.mark.parametrize(("capability", "expected"), [((6, 1), False), ((7, 0), True), ((12, 0), True)])
def test_which_gpus_are_supported(capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert rows_triton.available.__wrapped__(torch.device("cuda", 0)) is expected


def test_one_program_for_few_rows_and_enough_for_many() -> None:
    assert rows_triton._launch(3, 5, 1, 64) == ((15,), {"WIDTH": 64, "BLOCK_N": 1, "BLOCK_D": 64})
    assert rows_triton._launch(1, 1, 1000, 80) == ((63,), {"WIDTH": 80, "BLOCK_N": 16, "BLOCK_D": 128})
    assert rows_triton._launch(1, 2, 3, 5000) == ((6,), {"WIDTH": 5000, "BLOCK_N": 1, "BLOCK_D": 8192})
