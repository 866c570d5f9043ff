from pathlib import Path

import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.lab.census import support
from preconditioned_attention.lab.census.support import MATRIX_BEGINS, MATRIX_ENDS


@pytest.fixture(autouse=True)
def _registered_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at every class of transformers takes a while."""
    monkeypatch.setattr(support, "_look_ups", lambda: ())


def test_prints_or_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["support"]) == 0
    printed = capsys.readouterr().out
    assert "| `nn.modules.activation.MultiheadAttention` | converted |" in printed
    assert main(["support", "--output", str(tmp_path / "support.md")]) == 0
    assert (tmp_path / "support.md").read_text().strip() == printed.strip()


def test_writes_the_matrix_of_a_readme(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{MATRIX_BEGINS}\nold\n{MATRIX_ENDS}\n\nMore.\n")
    assert main(["support", "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(f"# Title\n\n{MATRIX_BEGINS}\n| library |")
    assert text.endswith(f"|\n{MATRIX_ENDS}\n\nMore.\n")
    assert "old" not in text
