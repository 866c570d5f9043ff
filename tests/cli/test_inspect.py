import re
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from preconditioned_attention import precondition_
from preconditioned_attention.cli import main

SMALL = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 300, "n_positions": 24}
TEXT = "attention " * 9


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    """A folder with a small model's configuration."""
    torch.manual_seed(4)
    model = transformers.GPT2Model(transformers.GPT2Config(**SMALL))
    model.config.save_pretrained(tmp_path / "small-gpt2")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "text.txt").write_text(TEXT)
    return "small-gpt2"


def test_a_model_of_timm(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "test_vit"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\d+ of \d+ attention modules would be converted", out)
    assert "generated input: 2 images of Gaussian noise" in out
    assert "kappa after C" in out
    assert "random initialization, seed 0" in out
    assert Path("inspect.html").read_text().startswith("<!DOCTYPE html>")


def test_a_folder_of_transformers_with_a_checkpoint(gpt2: str, capsys: pytest.CaptureFixture) -> None:
    given = ["--checkpoint", "weights.pth", "--text", "text.txt", "--compare-init", "--output", "page.html"]
    assert main(["inspect", gpt2, *given]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 attention modules would be converted." in out
    assert out.index("random initialization") < out.index("weights from weights.pth")
    assert "one token per byte" in out
    assert "Page: page.html" in out
    html = Path("page.html").read_text()
    assert "Layer by head: random initialization, seed 0" in html
    assert "Layer by head: weights from weights.pth" in html


def test_options_are_asked_for(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "xcit_nano_12_p16_224", "--include", "softmax", "channel", "class_attention"]) == 0
    out = capsys.readouterr().out
    assert "14 of 14" in out
    assert "cls_attn_blocks.1.attn" in out[out.index("rows x dim") :], "what was asked for is measured too"


def test_a_model_without_attention(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "resnet18"]) == 0
    assert "no module seems to compute attention" in capsys.readouterr().out
    assert not Path("inspect.html").exists()


def test_an_unknown_name(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "vit_tinny_patch16_224"]) == 2
    err = capsys.readouterr().err
    assert "no model named 'vit_tinny_patch16_224' in timm or transformers" in err
    assert "vit_tiny_patch16_224" in err


def test_large_models_are_listed_and_not_run(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "llama"]) == 2
    captured = capsys.readouterr()
    assert "32 of 32 attention modules would be converted." in captured.out
    assert "billion parameters and is not run here" in captured.err


def test_user_errors_are_one_line(gpt2: str, capsys: pytest.CaptureFixture) -> None:
    Path("empty").mkdir()
    Path("short.txt").write_text("0123456789")
    Path("broken.pth").write_bytes(b"no weights")
    torch.save({"other.weight": torch.ones(2)}, "other.pth")
    Image.new("RGB", (8, 8)).save("a.png")
    for arguments, message in (
        ([gpt2, "--checkpoint", "broken.pth"], "broken.pth cannot be read as weights"),
        ([gpt2, "--checkpoint", "none.pth"], "none.pth is not a file"),
        ([gpt2, "--checkpoint", "other.pth"], "other.pth does not fit this model"),
        ([gpt2, "--compare-init"], "give --checkpoint too"),
        ([gpt2, "--text", "short.txt"], "has 10 tokens; one window of the model needs 24"),
        ([gpt2, "--images", "empty"], "reads text"),
        (["test_vit", "--images", "empty"], "empty holds no image"),
    ):
        assert main(["inspect", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
        assert not Path("inspect.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "xcit_nano_12_p16_224", "swin_tiny_patch4_window7_224", "davit_tiny", "gpt2"]
)
def test_the_models_that_people_know(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", name]) == 0
    out = capsys.readouterr().out
    assert "heads, C divides the condition number" in out


def test_the_folder_of_a_converted_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The architecture comes from its configuration, the conversion from the marks in its weights."""
    torch.manual_seed(4)
    model = transformers.GPT2Model(transformers.GPT2Config(**SMALL))
    precondition_(model)
    model.save_pretrained(tmp_path / "converted")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "converted")
    (tmp_path / "text.txt").write_text("a " * 500)
    command = ["inspect", "converted", "--text", "text.txt", "--checkpoint", "converted/model.safetensors"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "trained with preconditioned attention in" in out
    assert "custom code" not in out
