import pytest

from preconditioned_attention.lab.training.progress import PLAIN_LINES, ProgressLine, peak_memory

RECORD = {"step": 3, "loss": 0.12345, "gradient_norm": 1.5, "learning_rate": 0.001, "seconds": 0.5}


def test_the_line_holds_everything() -> None:
    line = ProgressLine("digits", total=20, batch_size_at=lambda step: 64, enabled=True).format(RECORD)
    for part in ("digits 3/20", "loss 0.1235", "gradient norm 1.5", "lr 1.0e-03", "128 samples/s"):
        assert part in line
    assert line.endswith("MiB")


def test_plain_lines_now_and_then_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("digits", total=200, batch_size_at=lambda step: 64, enabled=True) as line:
        for step in range(1, 201):
            line.step({**RECORD, "step": step})
        line.note("that was it")
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == PLAIN_LINES + 1
    assert err.splitlines()[-1] == "that was it"


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("digits", total=3, batch_size_at=lambda step: 64, enabled=False) as line:
        line.step(RECORD)
        line.note("unheard")
    assert capfd.readouterr() == ("", "")


def test_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with ProgressLine("digits", total=200, batch_size_at=lambda step: 64, enabled=True) as line:
        line.step(RECORD)
    err = capfd.readouterr().err
    assert "digits 3/200" in err
    assert "samples/s" in err


def test_peak_memory_is_that_of_a_process_with_torch() -> None:
    memory = peak_memory()
    assert memory is None or 50 * 2**20 < memory < 2**40
