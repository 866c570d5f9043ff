"""The rules of DESIGN.md: imports between packages, what an import loads, public names, where tests are, code style."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import preconditioned_attention as pa

SOURCE = Path(pa.__file__).parent
TESTS = Path(__file__).parent

# Within each list a package may import from those behind it. The library never imports the lab; the command line may
# import both. `reporting` imports nothing of ours.
LIBRARY = [
    "diagnostics",
    "conversion",
    "layers",
    "flex",
    "functional",
    "varlen",
    "ops",
    "equilibration",
    "selection",
    "config",
]
LAB = ["inspection", "comparison", "recipes", "training", "tasks", "models", "data", "benchmarking", "census"]
CHAIN = ["cli", *(f"lab.{name}" for name in LAB), *LIBRARY]
# Private helpers that import nothing of ours but each other.
FREE = {"_compiler", "_extras", "_checks", "_environment", "_files", "_symbolic", "_yaml", "_version"}
MAY_REPORT = {
    "cli",
    *(f"lab.{name}" for name in ("inspection", "comparison", "training", "tasks", "benchmarking", "census")),
}
COMPILERS = ("torch._dynamo", "torch._inductor", "triton", "sympy", "torch.distributed.tensor")
HEAVY = [
    "timm",
    "transformers",
    "torchvision",
    "accelerate",
    "matplotlib",
    "scipy",
    "sklearn",
    "rich",
    "tyro",
    "jinja2",
    "yaml",
]


def package_of(path: Path) -> str:
    """Its package below ours: ``"ops"``, ``"lab.training"``."""
    return _package(path.relative_to(SOURCE).with_suffix("").parts)


def _package(parts: Sequence[str]) -> str:
    return ".".join(parts[: 2 if parts[0] == "lab" else 1])


def imported_packages(path: Path) -> set[str]:
    """Packages of ours that a file imports, at any depth of the file."""
    package = ("preconditioned_attention", *path.relative_to(SOURCE).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level + 1] if node.level else ()
            base = [*anchor, *filter(None, (node.module or "").split("."))]
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {_package(name[1:]) for name in names if name[0] == "preconditioned_attention" and len(name) > 1}
    return found


FILES = sorted(
    path
    for path in SOURCE.rglob("*.py")
    if path.parent not in (SOURCE, SOURCE / "lab") or path.stem not in ("__init__", "__main__")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    package = package_of(path)
    others = imported_packages(path) - {package} - FREE
    if package in FREE or package == "lab.reporting":
        assert not others, f"{package} may import no other package of ours"
        return
    assert package in CHAIN, f"{package} is not in DESIGN.md's list"
    if "lab.reporting" in others:
        assert package in MAY_REPORT
    behind = set(CHAIN[CHAIN.index(package) + 1 :]) | {"lab.reporting"}
    assert others <= behind, f"{package} must not import {sorted(others - behind)}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """At any depth of a file, type checking included; a package's `__init__` stands for none of its files."""
    graph = {module_name(path): imported_modules(path) for path in FILES if path.stem != "__init__"}
    TopologicalSorter({name: others & set(graph) for name, others in graph.items()}).prepare()  # raises CycleError


def module_name(path: Path) -> str:
    """``"ops.flash.cpu"``."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def modules_after(program: str) -> list[str]:
    """The modules that are loaded when ``program`` has run in a new process."""
    script = f"import sys\n{program}\nprint('\\n'.join(sys.modules))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_loads_no_torch() -> None:
    loaded = modules_after("import preconditioned_attention")
    assert "torch" not in loaded
    ours = [name for name in loaded if name.startswith("preconditioned_attention")]
    assert set(ours) == {"preconditioned_attention", "preconditioned_attention._version"}


def test_public_names_of_the_library_load_no_compiler_and_nothing_of_the_lab() -> None:
    library = (
        "import preconditioned_attention as pa\nfor name in pa.__all__:\n    name == 'compare' or getattr(pa, name)"
    )
    loaded = set(modules_after(library)) - set(modules_after("import torch"))
    assert "preconditioned_attention.conversion.convert" in loaded
    assert not {name for name in loaded if name.startswith(("preconditioned_attention.lab.", *COMPILERS))}


KERNELS = {"cpu", "cuda", "efficient", "cudnn", "packed_cpu", "packed_cuda"}
BACKENDS = {"ops.reference", "ops.sdpa_then_normalize", *(f"ops.flash.{kernel}" for kernel in KERNELS)}


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a file imports, as far as they are files or packages: ``"ops.flash.cpu"``."""
    package = ("preconditioned_attention", *path.relative_to(SOURCE).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[1 : len(package) - node.level + 1], *filter(None, (node.module or "").split("."))]
            names = [".".join([*base, alias.name]) for alias in node.names]
            found |= {name if _is_module(name) else ".".join(base) for name in names}
    return found


def _is_module(name: str) -> bool:
    path = SOURCE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def test_backends_never_import_each_other() -> None:
    """Only the dispatcher knows them all; the second derivative of a flash kernel is the reference's."""
    for path in (SOURCE / "ops").rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if name == "ops.dispatch":
            assert imported_modules(path) >= BACKENDS
        else:
            others = (imported_modules(path) & BACKENDS) - {name}
            assert not others or (name, others) == ("ops.flash.second_order", {"ops.reference"}), f"{name}: {others}"
    assert {path.stem for path in (SOURCE / "ops" / "flash").glob("*.py")} >= KERNELS


def test_rows_know_nothing_of_attention() -> None:
    """The row work imports the mathematics, the question whether a call is traced, and itself."""
    for path in (SOURCE / "ops" / "rows").glob("*.py"):
        ops = {name for name in imported_modules(path) if name.startswith("ops") and not name.startswith("ops.rows")}
        assert ops <= {"ops.tracing"}, path.name


def test_public_names_and_the_lab_need_torch_alone() -> None:
    lab = [f"preconditioned_attention.lab.{name}" for name in ("comparison", "training", "reporting")]
    program = f"import preconditioned_attention as pa, {', '.join(lab)}\nfor name in pa.__all__:\n    getattr(pa, name)"
    assert not set(HEAVY) & set(modules_after(program))


def test_public_names() -> None:
    assert sorted(pa.__all__) == [
        "ConditionMonitor",
        "ConversionReport",
        "PreconditionConfig",
        "__version__",
        "check_adapter",
        "compare",
        "equilibrate",
        "is_preconditioned",
        "layers",
        "precondition_",
        "preconditioned_attention",
        "preconditioned_flex_attention",
        "preconditioned_varlen_attention",
        "register_adapter",
        "register_posthook",
        "register_prehook",
        "restore_",
    ]
    assert all(getattr(pa, name) is not None for name in pa.__all__)
    assert set(pa.__all__) <= set(dir(pa))
    with pytest.raises(AttributeError, match="has no attribute 'precondition'"):
        _ = pa.precondition  # type: ignore[attr-defined]


def test_a_name_may_be_first_used_inside_a_compiled_function() -> None:
    program = """
import torch
import preconditioned_attention as pa
x = torch.randn(1, 2, 4, 8)
compiled = torch.compile(lambda x: pa.preconditioned_attention(x, x, x), fullgraph=True, backend="eager")
torch.testing.assert_close(compiled(x), pa.preconditioned_attention(x, x, x))
"""
    assert "preconditioned_attention.functional" in modules_after(program)


def test_every_test_file_has_its_source() -> None:
    own = {
        "test_house",
        "test_sdpa",
        "test_readme",
        "test_docs",
        "test_results",
        "test_examples",
        "test_packaging",
        "test_together",
        "test_bad_vision",
        "test_converted_beside_plain",
        "test_bad_input",
        "test_distributed",
    }
    for path in TESTS.rglob("test_*.py"):
        if path.stem in own or path.parent.name == "deployment":  # one file there for each kind of tool
            continue
        stem = path.stem.removeprefix("test_")
        folder = SOURCE / path.parent.relative_to(TESTS)
        candidates = [
            folder / f"{stem}.py",
            folder / f"_{stem}.py",
            folder / stem / "__init__.py",
            folder / "__init__.py",
        ]
        assert any(candidate.exists() for candidate in candidates[:3]) or (
            stem == folder.name and candidates[3].exists()
        ), path


def test_helpers_of_tests_live_in_one_folder() -> None:
    elsewhere = [path for path in TESTS.rglob("*.py") if not path.stem.startswith("test_") and path.stem != "conftest"]
    assert {path.parent for path in elsewhere} == {TESTS / "helpers"}


def test_nothing_rebinds_torch_functions() -> None:
    for path in SOURCE.rglob("*.py"):
        assert "F.scaled_dot_product_attention =" not in path.read_text(), path


def test_every_module_says_what_is_in_it() -> None:
    for path in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


BRITISH = re.compile(
    "(optimi|normali|initiali|tokeni|quanti|randomi|summari|synchroni|recogni|seriali|factori|organi|speciali)s(e|a|ing)"
    "|colour|behaviour|neighbour|favour|honour|catalogue|licence|labelled",
    flags=re.IGNORECASE,
)


def identifiers(path: Path) -> Iterator[str]:
    """The names of a file and in it: functions, classes, arguments, variables, attributes."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("name", "arg", "id", "attr"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


@pytest.mark.parametrize("folder", [SOURCE, TESTS, TESTS.parent / "examples"], ids=["src", "tests", "examples"])
def test_identifiers_have_american_spelling(folder: Path) -> None:
    found = {(path.name, name) for path in folder.rglob("*.py") for name in identifiers(path) if BRITISH.search(name)}
    assert found == set()


def test_pages_have_american_spelling() -> None:
    for path in [*TESTS.parent.glob("docs/*.md"), *(TESTS.parent / f"{name}.md" for name in ("README", "DESIGN"))]:
        assert not BRITISH.search(path.read_text()), path


def function_lengths(folder: Path) -> Iterator[int]:
    """Lines of every function, from its ``def`` to its end, without the docstring."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                docstring = node.body[0] if ast.get_docstring(node) is not None else None
                length = (node.end_lineno or 0) - node.lineno + 1
                yield length - (0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1)


@pytest.mark.parametrize("folder", [SOURCE, SOURCE / "lab", TESTS], ids=["src", "lab", "tests"])
def test_functions_are_short(folder: Path) -> None:
    lengths = list(function_lengths(folder))
    assert statistics.median(lengths) <= 7
    assert statistics.quantiles(lengths, n=10)[-1] <= 17
    assert max(lengths) <= 55
