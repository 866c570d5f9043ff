"""The files around the package agree: workflows, `.ci/run` and the Makefile; pinned versions; issue forms; citation."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PINS = {
    name.lower().replace("_", "-"): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def commands_of(workflow: Path) -> set[str]:
    """Every `run` of a workflow, once for each entry of its job's matrix."""
    found = set()
    for job in read_yaml(workflow)["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {"": [""]})
        ((axis, values),) = matrix.items()
        commands = [step["run"] for step in job["steps"] if "run" in step]
        found |= {command.replace(f"${{{{ matrix.{axis} }}}}", value) for command in commands for value in values}
    return found


def test_workflows_run_what_ci_runs() -> None:
    ran = re.findall(r"^with_python (\S+) make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    expected = {f"make {target} PYTHON=python{version}" for version, target in ran}
    assert len(expected) == len(ran) >= 6
    assert set().union(*map(commands_of, WORKFLOWS)) == expected


def test_make_has_every_target_that_is_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for workflow in WORKFLOWS:
        assert {command.split()[1] for command in commands_of(workflow)} <= targets
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(phony.split()) == targets


def test_the_suite_runs_on_every_python_of_the_classifiers() -> None:
    versions = re.findall(r":: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    tested = {command for workflow in WORKFLOWS for command in commands_of(workflow) if "make test " in command}
    assert tested == {f"make test PYTHON=python{version}" for version in versions}
    assert PROJECT["requires-python"] == f">={versions[0]}"


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_every_dependency_is_pinned(extra: str) -> None:
    names = (re.split(r"[\[<>= ]", requirement)[0] for requirement in PROJECT["optional-dependencies"][extra])
    missing = {name for name in names if name.lower().replace("_", "-") not in {*PINS, PROJECT["name"]}}
    assert not missing


def test_pre_commit_takes_the_pinned_ruff() -> None:
    hooks = [hook for repo in read_yaml(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    ruff = [hook["additional_dependencies"] for hook in hooks if hook["id"].startswith("ruff")]
    assert ruff == [[f"ruff=={PINS['ruff']}"]] * 2


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_complete(path: Path) -> None:
    form = read_yaml(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_there_are_forms_for_bugs_classes_and_results() -> None:
    assert {path.stem for path in FORMS} == {"bug", "unconverted-attention", "results"}


def test_the_citation_names_the_paper_of_the_design() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])
    paper, (author,) = citation["preferred-citation"], citation["preferred-citation"]["authors"]
    name = f"{author['given-names'][0]}. {author['family-names']}"
    place = f"AISTATS {paper['year']}, PMLR {paper['volume']}:{paper['start']}-{paper['end']}"
    (arxiv,) = (identifier["value"].replace(":", " ") for identifier in paper["identifiers"])
    assert f"{name}, *{paper['title']}*, {place}, {arxiv}" in " ".join((ROOT / "DESIGN.md").read_text().split())
