import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.lab.census import sweep as sweeping
from preconditioned_attention.lab.census.sweep import Finding, Subject


def of_small_models(library: str) -> tuple[Subject, ...]:
    assert library == "timm"
    return tuple(Subject("timm", name) for name in ("test_vit", "test_resnet", "efficientvit_m0", "mobilevitv2_050"))


def test_prints_what_was_converted_and_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeping, "subjects", of_small_models)
    assert main(["sweep", "timm", "--jobs", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    counts = {" ".join(line[1:-8]): line[-8:] for line in lines if line[:1] == ["timm"] and line[-1].isdigit()}
    #                                              all, exactly, by definition, refused, unknown, failed, ...
    assert counts["models with softmax attention"] == ["2", "1", "1", "0", "0", "0", "0", "0"]
    assert counts["models with other attention"] == ["1", "0", "0", "1", "0", "0", "0", "0"]
    assert counts["models without attention"] == ["1", "0", "0", "0", "0", "0", "0", "1"]


def test_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        "preconditioned_attention.lab.census.catalog.installed_libraries", lambda: {"timm": True, "diffusers": False}
    )
    monkeypatch.setattr(sweeping, "subjects", of_small_models)
    assert main(["sweep", "-j", "1"]) == 0
    assert "Not installed, and not swept: diffusers." in capsys.readouterr().out


def test_unknown_attention_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = Finding("timm", sweeping.SOFTMAX, "a_model", "unknown", "timm.models.new.Attention")
    monkeypatch.setattr(sweeping, "subjects", of_small_models)
    monkeypatch.setattr(sweeping, "look_at", lambda subject: (found,))
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "timm", "--jobs", "1"])
    assert ended.value.code == 1
    assert "timm.models.new.Attention (a_model)" in " ".join(capsys.readouterr().out.split())


def test_a_library_that_is_not_known_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "tim"]) == 2
    assert "got 'tim'" in capsys.readouterr().err
