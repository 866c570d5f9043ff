import pytest

from preconditioned_attention.cli import main


def test_a_model_of_timm(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "vit_tiny_patch16_224"]) == 0
    out = capsys.readouterr().out
    assert "blocks.0.attn and 11 more" in out
    assert "12 of 12 attention modules would be converted." in out


def test_a_model_type_of_transformers(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "gpt2"]) == 0
    assert "12 of 12 attention modules would be converted." in capsys.readouterr().out


def test_options_are_asked_for(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "xcit_nano_12_p16_224"]) == 0
    without = capsys.readouterr().out
    assert main(["inspect", "xcit_nano_12_p16_224", "--class-attention"]) == 0
    assert "12 of 14" in without
    assert "14 of 14" in capsys.readouterr().out


def test_a_model_without_attention(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "resnet18"]) == 0
    assert "no module seems to compute attention" in capsys.readouterr().out


def test_an_unknown_name(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "vit_tinny_patch16_224"]) == 2
    err = capsys.readouterr().err
    assert "no model named 'vit_tinny_patch16_224' in timm or transformers" in err
    assert "vit_tiny_patch16_224" in err
