import time

import pytest

from preconditioned_attention.lab.benchmarking import timing as timing_module
from preconditioned_attention.lab.benchmarking.timing import time_against_first, time_paired


def test_candidates_take_turns_and_the_first_is_the_reference() -> None:
    calls: list[str] = []
    timings = time_paired({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0.0, least_turns=3)
    assert calls[::2] == ["b", "a"] * 2 + ["b"]
    assert calls[1::2] == ["a", "b"] * 2 + ["a"]
    assert timings["a"].turns == timings["b"].turns == 3
    assert timings["a"].ratio_p20 == timings["a"].ratio_p50 == timings["a"].ratio_p80 == 1.0


def test_quantiles_are_of_the_paired_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down threefold between the turns; the ratio does not see it."""
    speeds = {"a": iter([1.0, 1.0, 1.0, 3.0, 9.0]), "b": iter([2.0, 2.0, 2.0, 6.0, 18.0])}
    monkeypatch.setattr(timing_module, "_seconds", lambda candidate: next(speeds[candidate()]))
    timing = time_paired({"a": lambda: "a", "b": lambda: "b"}, seconds=0.0, least_turns=3)["b"]
    assert (timing.ratio_p20, timing.ratio_p50, timing.ratio_p80) == (2.0, 2.0, 2.0)
    assert timing.median_seconds == 6.0


def test_goes_on_until_the_time_is_up() -> None:
    assert time_paired({"a": lambda: time.sleep(0.001)}, seconds=0.05, least_turns=1)["a"].turns > 1


def test_nothing_to_time() -> None:
    with pytest.raises(ValueError, match="a candidate and a turn at least; got 0 and 7"):
        time_paired({}, seconds=1.0)


def test_every_candidate_is_paired_with_the_first_alone() -> None:
    calls: list[str] = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = time_against_first(candidates, seconds=0.0)
    assert list(timings) == ["a", "b", "c"]
    assert timings["a"].ratio_p50 == 1.0
    assert set(calls[: len(calls) // 2]) == {"a", "b"}
    assert set(calls[len(calls) // 2 :]) == {"a", "c"}
