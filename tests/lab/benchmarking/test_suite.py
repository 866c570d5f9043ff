from collections.abc import Iterator

import pytest

from preconditioned_attention.lab.benchmarking import suite


def test_shapes_then_steps_then_the_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def shape_of(shape, dtype, *, compiled, device, seconds) -> Iterator[int]:
        calls.append((shape.name, str(dtype), compiled, device, seconds))
        return iter([1, 2])

    def step_of(shape, *, device, seconds) -> Iterator[int]:
        calls.append((shape.name, device, seconds))
        return iter([3])

    def monitor(*, device, seconds) -> Iterator[int]:
        calls.append(("monitor", device, seconds))
        return iter([4])

    for name, function in (("measure_shape", shape_of), ("measure_step", step_of), ("measure_monitor", monitor)):
        monkeypatch.setattr(suite, name, function)
    names = ("monitor-vit-s", "step-gpt2", "vit-b")
    rows = list(suite.measure_all(names, ["bfloat16"], ["eager", "compiled"], device="cpu", seconds=1.0))
    assert rows == [[1, 2], [1, 2], [3], [4]]
    assert calls == [
        ("vit-b", "torch.bfloat16", False, "cpu", 1.0),
        ("vit-b", "torch.bfloat16", True, "cpu", 1.0),
        ("step-gpt2", "cpu", 4.0),
        ("monitor", "cpu", 4.0),
    ]
