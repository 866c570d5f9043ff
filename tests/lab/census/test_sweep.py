"""What the sweep finds; the sweeps of whole libraries are slow, and `make sweep` runs them."""

from collections import Counter

import pytest

from preconditioned_attention.lab.census import sweep as sweeping
from preconditioned_attention.lab.census.sweep import Finding, Subject, is_complete, look_at, subjects, sweep


def counts(findings: tuple[Finding, ...]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for finding in findings:
        found.setdefault(finding.what, Counter())[finding.outcome] += 1
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_vit", {(sweeping.SOFTMAX, "exactly")}),
        ("efficientvit_m0", {(sweeping.SOFTMAX, "defined")}),
        ("volo_d1_224", {(sweeping.SOFTMAX, "exactly"), (sweeping.OTHER, "defined")}),
        ("mobilevitv2_050", {(sweeping.OTHER, "refused")}),
        ("test_resnet", {(sweeping.WITHOUT, "none")}),
    ],
)
def test_models_of_timm(name: str, expected: set[tuple[str, str]]) -> None:
    found = look_at(Subject("timm", name))
    assert {(finding.what, finding.outcome) for finding in found} == expected
    assert all(bool(finding.reason) == (finding.outcome in ("defined", "refused")) for finding in found)


def test_models_that_compute_while_they_are_built() -> None:
    pytest.importorskip("accelerate")
    (found,) = look_at(Subject("torchvision", "regnet_y_400mf"))
    assert (found.what, found.outcome) == (sweeping.WITHOUT, "none")


def test_files_of_transformers() -> None:
    found = look_at(Subject("transformers", "transformers.models.diffllama.modeling_diffllama"))
    assert {(f.what, f.outcome) for f in found} == {(sweeping.LOOKING_UP, "refused")}
    found = look_at(Subject("transformers", "transformers.models.falcon.modeling_falcon"))
    assert {(f.what, f.outcome) for f in found} == {(sweeping.CLASSES, "exactly")}


def test_processors_of_diffusers() -> None:
    pytest.importorskip("diffusers")
    found = counts(look_at(Subject("diffusers", "diffusers.models.transformers.transformer_flux")))
    assert found == {sweeping.CLASSES: {"exactly": 1}, sweeping.PROCESSORS: {"exactly": 1, "refused": 1}}


def test_an_error_is_a_finding() -> None:
    (found,) = look_at(Subject("timm", "no_such_model"))
    assert (found.outcome, "no_such_model" in found.reason) == ("failed", True)
    assert not is_complete([found])
    (absent,) = look_at(Subject("transformers", "no_such_package.modeling_x"))
    assert absent.outcome == "absent"
    assert is_complete([absent])


@pytest.mark.parametrize(
    ("what", "outcome", "complete"),
    [
        (sweeping.SOFTMAX, "exactly", True),
        (sweeping.SOFTMAX, "refused", False),
        (sweeping.OTHER, "refused", True),
        (sweeping.CLASSES, "unknown", False),
    ],
)
def test_when_a_sweep_is_complete(what: str, outcome: sweeping.Outcome, complete: bool) -> None:
    assert is_complete([Finding("timm", what, "x", outcome)]) is complete


@pytest.mark.slow
def test_two_processes_find_the_same_as_one() -> None:
    chosen = [Subject("timm", name) for name in ("test_vit", "test_resnet", "test_vit2")]
    progress: list[int] = []
    both = sweep(chosen, jobs=2, on_progress=lambda: progress.append(1))
    assert both == sweep(chosen)
    assert len(progress) == 3


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="library must be one that is installed"):
        subjects("keras")
    with pytest.raises(ValueError, match="jobs must be at least 1; got 0"):
        sweep([], jobs=0)


@pytest.mark.slow
def test_every_model_of_timm() -> None:
    chosen = subjects("timm")
    found = counts(findings := sweep(chosen, jobs=2))
    assert is_complete(findings)
    assert len(chosen) == 1371
    assert found[sweeping.SOFTMAX] == {"exactly": 652, "defined": 6}
    assert found[sweeping.OTHER] == {"exactly": 41, "defined": 30, "refused": 30}


@pytest.mark.slow
def test_every_model_of_torchvision() -> None:
    assert counts(sweep(subjects("torchvision")))[sweeping.SOFTMAX] == {"exactly": 17}


@pytest.mark.slow
@pytest.mark.parametrize("library", ["diffusers", "open_clip", "transformers", "x_transformers"])
def test_every_class_of_a_library(library: str) -> None:
    pytest.importorskip(library)
    findings = sweep(subjects(library))
    assert is_complete(findings), [finding for finding in findings if finding.outcome in ("unknown", "failed")]
    if library == "transformers":
        assert counts(findings)[sweeping.LOOKING_UP] == {"exactly": 446, "refused": 6}
