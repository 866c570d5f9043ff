"""The input of the inspected model: the user's images or text, or generated input. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._extras import require
from ..._files import read_text
from ..data.image_files import SUFFIXES, one_line, printable, read_upright

BATCH = 2
WINDOW = 128  # tokens of a text; fewer if the model takes fewer
BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Positional or keyword arguments for the model, with a description."""

    args: tuple[Tensor, ...] = ()
    kwargs: dict[str, Any]
    description: str


def make_inputs(model: nn.Module, name: str, *, images: Path | None, text: Path | None, seed: int) -> Inputs:
    """A small batch for ``model``: the user's files, or generated input.

    Args:
        model: of timm or transformers.
        name: of the model; for a folder with a tokenizer, text is tokenized by it, otherwise by bytes.
        images: a folder with images; the first ones in alphabetical order are taken.
        text: a UTF-8 file; its first tokens are taken.
        seed: of the generated input.

    Raises:
        ValueError: the model takes another kind of input, or the input is too short.
        OSError: a file cannot be read.
    """
    if images is not None and text is not None:
        raise ValueError("--images and --text exclude each other: a model here reads one of the two")
    kind = _input_kind(model)
    if (images is not None and kind != "images") or (text is not None and kind != "text"):
        given = "--images" if images is not None else "--text"
        raise ValueError(f"{given}: {name} reads {kind}; leave the option out to run it on generated input")
    generator = torch.Generator().manual_seed(seed)
    if kind == "images":
        return _image_inputs(model, images, generator)
    return _text_inputs(model, name, text, generator)


def _input_kind(model: nn.Module) -> str:
    main = getattr(model, "main_input_name", None)
    if main is None or main == "pixel_values":
        return "images"
    if main == "input_ids":
        return "text"
    raise ValueError(
        f"{type(model).__name__} reads {main!r}; only models of images and of text can be run here. Use "
        "ConditionMonitor around your own call of the model"
    )


def _image_inputs(model: nn.Module, folder: Path | None, generator: torch.Generator) -> Inputs:
    size, prepare, words = _image_preparation(model)
    if folder is None:
        batch = torch.randn(BATCH, *size, generator=generator)
        shape = " x ".join(map(str, size))
        description = f"generated input: {BATCH} images of Gaussian noise, {shape}"
    else:
        paths = _image_files(folder)
        batch = torch.stack([_read_image(path, size[0], prepare) for path in paths])
        names = ", ".join(printable(path.name) for path in paths)
        description = f"{len(paths)} images from {printable(folder.name)} ({names}), {words}"
    if hasattr(model, "main_input_name"):
        return Inputs(kwargs={"pixel_values": batch}, description=description)
    return Inputs(args=(batch,), kwargs={}, description=description)


def _image_preparation(model: nn.Module) -> tuple[tuple[int, int, int], Callable[[Any], Tensor], str]:
    """The input's size, the function from an image to a tensor, and its description."""
    if not hasattr(model, "main_input_name"):
        data = require("timm.data", extra="vision")
        config = data.resolve_model_data_config(model)
        return config["input_size"], data.create_transform(**config), "preprocessed by timm's configuration"
    config = model.config
    side, channels = getattr(config, "image_size", 224), getattr(config, "num_channels", 3)
    height, width = (side, side) if isinstance(side, int) else side
    v2 = require("torchvision.transforms.v2", extra="vision")
    steps = [v2.ToImage(), v2.Resize((height, width)), v2.ToDtype(torch.float32, scale=True)]
    prepare = v2.Compose([*steps, v2.Normalize([0.5] * channels, [0.5] * channels)])
    return (channels, height, width), prepare, f"resized to {height} x {width}, entries from -1 to 1"


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NotADirectoryError(f"--images: {printable(folder)} is not a folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"--images: {printable(folder)} holds no image ({', '.join(sorted(SUFFIXES))})")
    return paths[:BATCH]


def _read_image(path: Path, channels: int, prepare: Callable[[Any], Tensor]) -> Tensor:
    if channels not in (1, 3):
        raise ValueError(f"--images: the model takes images of {channels} channels; leave the option out")
    try:
        picture = read_upright(path)
    except OSError as error:
        raise ValueError(f"--images: {printable(path)} is not an image that can be read ({error})") from error
    return prepare(picture.convert("L") if channels == 1 else picture)


def _text_inputs(model: nn.Module, name: str, file: Path | None, generator: torch.Generator) -> Inputs:
    config: Any = model.config
    longest = getattr(config, "max_position_embeddings", None) or WINDOW
    window = min(WINDOW, longest)
    if file is None:
        tokens = torch.randint(0, config.vocab_size, (BATCH, window), generator=generator)
        description = f"generated input: {BATCH} sequences of {window} random tokens"
    else:
        tokens, words = _tokens(file, name, config.vocab_size, window)
        description = f"{len(tokens)} sequence(s) of {window} tokens from {file.name}, {words}"
    kwargs: dict[str, Any] = {"input_ids": tokens}
    if getattr(config, "is_encoder_decoder", False):
        kwargs["decoder_input_ids"] = tokens
    return Inputs(kwargs=kwargs, description=description)


def _tokens(file: Path, name: str, vocabulary: int, window: int) -> tuple[Tensor, str]:
    """Up to :data:`BATCH` windows of the file's tokens, and how they were tokenized."""
    if not file.is_file():
        raise FileNotFoundError(f"--text: {file} is not a file")
    if any((Path(name) / own).is_file() for own in ("tokenizer.json", "tokenizer_config.json")):
        tokenizers = require("transformers", extra="language").AutoTokenizer
        try:
            tokenizer = tokenizers.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of many kinds, the bare one of the library `tokenizers` among them
            raise ValueError(f"--text: the tokenizer in {name} cannot be read: {one_line(error)}") from error
        ids, words = tokenizer(read_text(file, kind="--text:")).input_ids, "tokenized by the model's tokenizer"
    elif vocabulary < BYTES:
        raise ValueError(f"--text: {name} has no tokenizer, and its {vocabulary} tokens are too few for bytes")
    else:
        ids = list(file.read_bytes())
        words = "one token per byte, because the model has no tokenizer here; it was not trained on such tokens"
    if max(ids, default=0) >= vocabulary:
        raise ValueError(f"--text: {file}, {words}, has token {max(ids)}, and {name} has {vocabulary} tokens")
    if len(ids) < window:
        raise ValueError(f"--text: {file} has {len(ids)} tokens; one window of the model needs {window}")
    count = min(BATCH, len(ids) // window)
    return torch.tensor(ids[: count * window]).view(count, window), words
