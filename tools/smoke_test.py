"""Smoke test of the installed package without extras: its files, the function, a conversion and back, the command.

`make wheel` runs it with the Python of a new environment. It needs nothing but the package and what the package needs.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F

import preconditioned_attention as pa

PACKAGE = "preconditioned_attention"
SOURCE = Path(__file__).resolve().parents[1] / "src"
OF_EXTRAS = ("accelerate", "cvxpy", "numpy", "timm", "transformers", "tyro", "yaml")


def check_environment() -> None:
    """No extra is installed."""
    present = [name for name in OF_EXTRAS if importlib.util.find_spec(name)]
    assert not present, f"an environment without extras was expected; it has {present}"


def check_files() -> None:
    """The wheel holds the source tree with its data, its metadata and the command; so no tests and no docs."""
    paths = (Path(str(file)) for file in metadata.files(PACKAGE) or ())
    installed = {path for path in paths if "__pycache__" not in path.parts}
    outside = {path for path in installed if path.parts[0] != PACKAGE and not path.parts[0].endswith(".dist-info")}
    assert {path.stem for path in outside} == {"precond"}, f"files outside of the package: {sorted(map(str, outside))}"

    files = (path.relative_to(SOURCE) for path in (SOURCE / PACKAGE).rglob("*") if path.is_file())
    expected = {path for path in files if "__pycache__" not in path.parts}
    found = {path for path in installed if path.parts[0] == PACKAGE}
    assert found == expected, f"not the files of src/: {sorted(map(str, found ^ expected))}"


def check_function() -> None:
    """Values and gradients are those of attention with normalized rows."""
    q, k, v = (torch.randn(2, 4, 7, 8, requires_grad=True) for _ in range(3))
    out = pa.preconditioned_attention(q, k, v, is_causal=True)
    expected = F.normalize(F.scaled_dot_product_attention(q, k, v, is_causal=True), dim=-1)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(result, (q, k, v), cotangent) for result in (out, expected))
    torch.testing.assert_close(ours, theirs)


def check_conversion() -> None:
    """`nn.TransformerEncoder` is converted, computes something else, and comes back bit for bit."""
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    inputs = torch.randn(2, 5, 16)
    before, keys = model(inputs), list(model.state_dict())
    report = pa.precondition_(model, strict=True, example_inputs=inputs)
    assert pa.is_preconditioned(model)
    report.verify(inputs)
    assert not torch.allclose(model(inputs), before), "the conversion changed nothing"
    pa.restore_(model)
    assert torch.equal(model(inputs), before), "restore_ did not bring the outputs back"
    assert list(model.state_dict()) == keys, "restore_ did not bring the state dict back"


def check_public_names() -> None:
    """Names that load on demand load without extras."""
    for name in pa.__all__:
        getattr(pa, name)


def check_command() -> None:
    """Help and version are printed; a command that needs an extra says so in one line and exits with code 2."""
    code, out, _ = precond("--help")
    assert code == 0, out
    assert "compare" in out, out
    assert precond("--version") == (0, f"precond {pa.__version__}\n", "")
    for command in ("train", "compare"):
        code, out, errors = precond(command, "digits")
        assert (code, out, errors.count("\n")) == (2, "", 1), (code, out, errors)
        assert "pip install 'preconditioned-attention[train]'" in errors, errors


def precond(*arguments: str) -> tuple[int, str, str]:
    """Run the installed command; return exit code, output and error output."""
    command = [str(Path(sys.executable).with_name("precond")), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    return ran.returncode, ran.stdout, ran.stderr


CHECKS = (check_environment, check_files, check_function, check_conversion, check_public_names, check_command)


def main() -> None:
    """Run every check in an empty working directory, which stays empty."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        for check in CHECKS:
            check()
            print(f"{check.__name__}: passed")
        left = os.listdir(empty)
        assert not left, f"files were left in the working directory: {left}"
        os.chdir(SOURCE)


if __name__ == "__main__":
    main()
