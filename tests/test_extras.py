import sys

import pytest

from preconditioned_attention._extras import require


def test_returns_the_module() -> None:
    assert require("json.decoder", extra="train") is sys.modules["json.decoder"]


def test_missing_module_names_the_extra_and_the_command() -> None:
    with pytest.raises(
        ImportError, match=r"'surely_not_there.part' .* pip install 'preconditioned-attention\[vision\]'"
    ):
        require("surely_not_there.part", extra="vision")


def test_a_broken_module_raises_its_own_error(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module_for_test.py").write_text("import another_missing_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_missing_module"):
        require("broken_module_for_test", extra="train")
