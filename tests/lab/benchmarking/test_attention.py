import pytest
import torch

from preconditioned_attention.lab.benchmarking.attention import measure_shape
from preconditioned_attention.lab.benchmarking.correctness import WrongResultError
from preconditioned_attention.lab.benchmarking.shapes import Shape
from preconditioned_attention.ops.flash.cpu import FLASH_CPU

TINY = Shape(name="tiny", batch=1, heads=2, length=9, keys=9, head_dim=8)


def test_rows_of_a_shape_that_trains() -> None:
    rows = list(measure_shape(TINY, torch.float32, compiled=False, device="cpu", seconds=0.0))
    assert [(row.measured, row.candidate) for row in rows] == [
        (measured, name)
        for measured in ("forward", "forward+backward")
        for name in ("plain", "full", "stop", "composition")
    ]
    saved = {row.candidate: row.saved_bytes for row in rows if row.measured == "forward+backward"}
    assert saved["full"] == saved["plain"]
    assert saved["stop"] == saved["plain"] + 4 * 2 * 9
    assert saved["composition"] > saved["plain"]
    assert all(row.median_ms > 0 and row.ratio_p20 <= row.ratio_p50 <= row.ratio_p80 for row in rows)


def test_decoding_is_measured_forward_only() -> None:
    shape = Shape(name="decode", batch=1, heads=2, length=1, keys=9, head_dim=8, trains=False)
    rows = list(measure_shape(shape, torch.bfloat16, compiled=False, device="cpu", seconds=0.0))
    assert {row.measured for row in rows} == {"forward"}


def test_a_wrong_result_gives_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = FLASH_CPU.attend
    monkeypatch.setattr(FLASH_CPU, "attend", lambda call: attend(call) * 1.01)
    with pytest.raises(WrongResultError):
        next(measure_shape(TINY, torch.float32, compiled=False, device="cpu", seconds=0.0))
