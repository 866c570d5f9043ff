from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from preconditioned_attention.lab.inspection import make_inputs
from tests.helpers.inspection_models import gpt2, vit

GIVEN = {"images": None, "text": None, "seed": 0}


def test_generated_input_is_seeded_and_said_to_be_so() -> None:
    one, same = (make_inputs(vit(), "vit", **GIVEN) for _ in range(2))
    assert torch.equal(one.args[0], same.args[0])
    assert one.args[0].shape == (2, 3, 32, 32)
    assert one.description == "generated input: 2 images of Gaussian noise, 3 x 32 x 32"
    other = make_inputs(vit(), "vit", images=None, text=None, seed=1)
    assert not torch.equal(one.args[0], other.args[0])
    tokens = make_inputs(gpt2(), "gpt2", **GIVEN)
    assert tokens.kwargs["input_ids"].shape == (2, 40)
    assert tokens.description == "generated input: 2 sequences of 40 random tokens"


def test_images_of_a_folder(tmp_path: Path) -> None:
    for name, color in (("b.png", 255), ("a.jpg", 0), ("c.png", 9)):
        Image.new("RGB", (50, 40), (color,) * 3).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    inputs = make_inputs(vit(), "vit", images=tmp_path, text=None, seed=0)
    assert inputs.args[0].shape == (2, 3, 32, 32)
    assert "2 images from" in inputs.description
    assert "(a.jpg, b.png)" in inputs.description
    assert inputs.args[0][0].max() < inputs.args[0][1].min(), "black, then white"
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    own = make_inputs(transformers.ViTModel(config), "vit", images=tmp_path, text=None, seed=0)
    assert own.kwargs["pixel_values"].shape == (2, 3, 32, 32)
    assert (own.kwargs["pixel_values"][0] + 1).abs().max() < 0.02
    assert (own.kwargs["pixel_values"][1] - 1).abs().max() < 0.02


def test_text_by_bytes(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abcdefgh" * 12)
    inputs = make_inputs(gpt2(), "gpt2", images=None, text=file, seed=0)
    assert inputs.kwargs["input_ids"].tolist() == [list(b"abcdefgh" * 5)] * 2
    assert "one token per byte, because the model has no tokenizer here" in inputs.description


def test_text_by_the_tokenizer_that_is_there(tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(10)} | {"[UNK]": 10}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    gpt2().config.save_pretrained(tmp_path)
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{i % 10}" for i in range(45)))
    inputs = make_inputs(gpt2(), str(tmp_path), images=None, text=file, seed=0)
    assert inputs.kwargs["input_ids"].tolist() == [[i % 10 for i in range(40)]]
    assert "tokenized by the model's tokenizer" in inputs.description


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    short, empty, broken = tmp_path / "short.txt", tmp_path / "empty", tmp_path / "broken"
    short.write_text("0123456789")
    empty.mkdir()
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    for model, options, error, message in (
        (gpt2(), {"text": short}, ValueError, "has 10 tokens; one window of the model needs 40"),
        (gpt2(), {"text": tmp_path / "none.txt"}, FileNotFoundError, "none.txt is not a file"),
        (gpt2(vocab_size=50), {"text": short}, ValueError, "its 50 tokens are too few for bytes"),
        (gpt2(), {"images": empty}, ValueError, "--images: it reads text"),
        (vit(), {"text": short}, ValueError, "--text: it reads images"),
        (vit(), {"images": empty}, ValueError, "empty holds no image"),
        (vit(), {"images": short}, NotADirectoryError, "is not a folder"),
        (vit(), {"images": broken}, ValueError, "a.png is not an image that can be read"),
        (vit(), {"images": empty, "text": short}, ValueError, "exclude each other"),
    ):
        with pytest.raises(error, match=message):
            make_inputs(model, "it", **{**GIVEN, **options})
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7
    )
    with pytest.raises(ValueError, match="reads 'input_values'; only models of images and of text"):
        make_inputs(transformers.Wav2Vec2Model(config), "it", **GIVEN)
