import subprocess
import sys

import pytest

from preconditioned_attention import cli


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in cli.COMMANDS)


def test_no_command_is_an_error_with_the_help() -> None:
    assert cli.main([]) == 2


def test_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    known = "train, compare, data, export, glue, inspect, sweep, support, texts, bench"
    expected = f"precond: unknown command 'trian' (did you mean 'train'?); known: {known}\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"precond {command}" in capsys.readouterr().out


def raising(error: BaseException) -> object:
    def call(command: str, arguments: list[str]) -> None:
        raise error

    return call


def test_errors_of_other_libraries_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_call", raising(ValueError("a defect")))  # raised in this file, not in the package
    with pytest.raises(ValueError, match="a defect"):
        cli.main(["train"])


def test_trouble_with_files_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "_call", raising(OSError("disk full")))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "precond: disk full\n"


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "_call", raising(KeyboardInterrupt()))
    assert cli.main(["train"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_needs_no_library() -> None:
    script = (
        "import sys; from preconditioned_attention.cli import main; main(['--help']); "
        "print([name for name in ('tyro', 'accelerate', 'timm') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
