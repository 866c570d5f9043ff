from pathlib import Path

import pytest
from torch import nn

from preconditioned_attention.cli import main
from preconditioned_attention.conversion.source_texts.known_texts import TABLE


def test_nothing_is_left_of_what_is_installed(capsys: pytest.CaptureFixture) -> None:
    before = TABLE.stat().st_mtime_ns
    assert main(["texts", "torch"]) == 0
    assert TABLE.stat().st_mtime_ns == before
    assert capsys.readouterr().err == "0 recorded as read, 0 left.\n"


def test_prints_the_code_of_what_nobody_has_read(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nn.MultiheadAttention, "forward", lambda self, query: query)
    with pytest.raises(SystemExit, match="1"):
        main(["texts", "torch"])
    out, err = capsys.readouterr()
    assert out.startswith("# torch.nn.modules.activation.MultiheadAttention\n")
    assert "lambda self, query: query" in out
    assert err == "0 recorded as read, 1 left.\n"
    assert main(["texts", "torch", "--accept", "MultiheadAttention"]) == 2
    assert "unknown class to accept" in capsys.readouterr().err
