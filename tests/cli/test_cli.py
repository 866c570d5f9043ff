import json
import subprocess
import sys

import pytest

from preconditioned_attention import __version__, cli


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in cli.COMMANDS)


def test_no_command_is_an_error_with_the_help() -> None:
    assert cli.main([]) == 2


def test_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    known = "train, compare, report, data, export, glue, inspect, sweep, support, texts, bench"
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


MISSPELT = {
    "train": ["digits", "--sead", "3"],
    "compare": ["digits", "--sead", "3"],
    "report": ["folder", "--outptu", "page"],
    "data": ["listops", "--output", "listops", "--sead", "3"],
    "export": ["run", "--outptu", "folder"],
    "glue": ["folder", "--root", "data", "--trails", "3"],
    "inspect": ["test_vit", "--imagse", "folder"],
    "sweep": ["--jbos", "3"],
    "support": ["--outptu", "page.md"],
    "texts": ["timm", "--acept", "Attention"],
    "bench": ["--secnods", "1"],
}


def run_in_a_new_process(*lines: list[str]) -> list[tuple[int, list[str]]]:
    """The exit code of each command line, and which heavy libraries are loaded after it."""
    script = f"""
import contextlib, io, json, sys
from preconditioned_attention.cli import main
heavy = {["torch", "numpy", "rich", "matplotlib", "accelerate", "timm", "transformers"]!r}
outcomes = []
for line in {lines!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(line)
        except SystemExit as ended:
            code = ended.code
    outcomes.append((code, [name for name in heavy if name in sys.modules]))
print(json.dumps(outcomes))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return [(code, loaded) for code, loaded in json.loads(out)]


def test_help_and_version_load_no_torch() -> None:
    lines = [["--help"], ["--version"], *([command, "--help"] for command in cli.COMMANDS)]
    assert run_in_a_new_process(*lines) == [(0, [])] * len(lines)


def test_mistakes_load_no_torch() -> None:
    assert list(MISSPELT) == sorted(MISSPELT, key=list(cli.COMMANDS).index)
    lines = [["trian"], *([command, *arguments] for command, arguments in MISSPELT.items())]
    assert run_in_a_new_process(*lines) == [(2, [])] * len(lines)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_misspelt_flag_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *MISSPELT[command]])
    assert ended.value.code == 2
    flag = next(word for word in reversed(MISSPELT[command]) if word.startswith("--"))
    assert flag in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"precond {__version__}\n"


def test_an_installation_without_the_extra_is_told_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.delitem(sys.modules, "preconditioned_attention.cli.train", raising=False)
    assert cli.main(["train", "digits"]) == 2
    assert "preconditioned-attention[train]" in capsys.readouterr().err
