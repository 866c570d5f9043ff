from pathlib import Path

import pytest

from preconditioned_attention.cli import main


def test_prints_or_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["support"]) == 0
    printed = capsys.readouterr().out
    assert "| `nn.modules.activation.MultiheadAttention` | converted |" in printed
    assert main(["support", "--output", str(tmp_path / "support.md")]) == 0
    assert (tmp_path / "support.md").read_text().strip() == printed.strip()
