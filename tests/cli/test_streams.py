import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from preconditioned_attention import cli

def print_much(command, arguments):
    for number in range(20_000):
        print(number, "\\u03ba \\u2013 caf\\xe9")

cli._call = print_much
sys.exit(cli.main(["train"]))
"""


def run(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``PROGRAM``, which prints 20,000 lines with characters that are not ASCII, with redirections of the shell."""
    environment = {**os.environ, "PYTHON": sys.executable, "PROGRAM": PROGRAM, **variables}
    script = f'set -o pipefail; "$PYTHON" -c "$PROGRAM" {command}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_closes_ends_the_command_quietly(unbuffered: str) -> None:
    ended = run("| head -2", PYTHONUNBUFFERED=unbuffered)
    assert (ended.returncode, ended.stderr) == (141, "")
    assert len(ended.stdout.splitlines()) == 2


def test_a_reader_of_the_help_may_close_it() -> None:
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' -m preconditioned_attention --help | true"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode in (0, 141)  # 0 if it was written before the reader ended
    assert ended.stderr == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_under_standard_output_is_one_line(unbuffered: str) -> None:
    ended = run("> /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert ended.returncode == 2
    assert ended.stderr.startswith("precond: standard output")
    assert ended.stderr.endswith("No space left on device\n")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(closed: str) -> None:
    ended = run(closed)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_characters_that_the_encoding_lacks_are_escaped(variables: dict[str, str]) -> None:
    ended = run("", PYTHONCOERCECLOCALE="0", **variables)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("0 \\u03ba \\u2013 caf\\xe9\n1 ")


def test_tables_of_rich_in_ascii(tmp_path: Path) -> None:
    program = """
import sys
from preconditioned_attention import cli
from preconditioned_attention.lab.reporting import Table, print_table

def show(command, arguments):
    print_table(Table(title="\\u03ba", columns=("a",), rows=(("\\u2013",),), note="\\u2212"))

cli._call = show
sys.exit(cli.main(["train"]))
"""
    ended = run("", PYTHONIOENCODING="ascii", PROGRAM=program)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\u03ba" in ended.stdout


def test_files_opened_later_do_not_take_the_number_of_a_closed_stream() -> None:
    program = """
import os, sys
from preconditioned_attention import cli

def open_one(command, arguments):
    assert os.open(os.devnull, os.O_RDONLY) > 2

cli._call = open_one
sys.exit(cli.main(["train"]))
"""
    assert run(">&- <&-", PROGRAM=program).returncode == 0
