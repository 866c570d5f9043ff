import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from preconditioned_attention.lab.data.image_files import one_line, printable, read_stored, read_upright

GRAY = np.array([[0, 1, 128], [200, 254, 255]], dtype=np.uint8)
COLORS = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)


def written(image: Image.Image, form: str = "PNG", **options: Any) -> BytesIO:
    file = BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def pixels(file: BytesIO) -> np.ndarray:
    image = read_upright(file)
    assert image.mode == "RGB"
    return np.asarray(image)


def png_of_16_bits(values: np.ndarray) -> BytesIO:
    """An RGB image, which Pillow does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_gray_of_16_bits_is_scaled_to_8(form: str) -> None:
    image = Image.fromarray(GRAY.astype(np.uint16) * 257)
    assert np.array_equal(pixels(written(image, form)), GRAY[..., None].repeat(3, axis=-1))


def test_values_between_those_of_8_bits_are_rounded() -> None:
    image = Image.fromarray(np.array([[128, 129, 257 + 128, 257 + 129]], dtype=np.uint16))
    assert pixels(written(image))[0, :, 0].tolist() == [0, 1, 1, 2]


def test_colors_of_16_bits() -> None:
    assert np.array_equal(pixels(png_of_16_bits(COLORS.astype(np.uint16) * 257)), COLORS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_other_modes_are_converted(mode: str) -> None:
    source = Image.fromarray(COLORS).convert(mode)
    file = written(source, "TIFF")
    assert np.array_equal(pixels(file), np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_are_laid_on_white(mode: str) -> None:
    image = Image.fromarray(COLORS).convert(mode)
    opaque = np.asarray(image.convert("RGB"))
    assert np.array_equal(pixels(written(image)), opaque)
    image.putalpha(Image.fromarray(np.array([[255, 255, 255], [0, 0, 128]], dtype=np.uint8)))
    read = pixels(written(image))
    assert np.array_equal(read[0], opaque[0])
    assert read[1, :2].tolist() == [[255, 255, 255]] * 2
    assert np.abs(read[1, 2] - (opaque[1, 2] / 255 * 128 + 127)).max() <= 1


def test_a_transparent_color_of_a_palette_is_laid_on_white() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    read = pixels(written(image, transparency=bytes([0, 255])))
    assert read.tolist() == [[[255] * 3, [40, 50, 60]], [[40, 50, 60], [255] * 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_the_orientation_of_exif(form: str, orientation: int) -> None:
    """The tag says where the first row and column are: 6, for one, that the first row is the right side."""
    upright = Image.fromarray(COLORS)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # Image.Transpose, from upright to stored
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(written(stored, form, exif=exif)), COLORS)


def test_a_broken_block_of_exif_is_left_alone() -> None:
    file = written(Image.fromarray(COLORS), exif=b"Exif\0\0no block of EXIF")
    assert np.array_equal(pixels(file), COLORS)


def test_the_first_picture_of_a_photo_with_previews() -> None:
    photo = Image.fromarray(COLORS.repeat(8, axis=0).repeat(8, axis=1))
    file = written(photo, "MPO", save_all=True, append_images=[photo.resize((8, 8))], quality=95)
    assert read_stored(file)[0].size == photo.size


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (lambda: written(Image.new("F", (2, 2)), "TIFF"), "its pixels are floats, whose range is not known"),
        (lambda: written(Image.new("I", (2, 2)), "TIFF"), "its pixels are integers of 32 bits"),
        (
            lambda: written(Image.new("L", (2, 2)), "GIF", save_all=True, append_images=[Image.new("L", (2, 2), 9)]),
            "2 frames",
        ),
        (
            lambda: written(Image.new("L", (2, 2)), "TIFF", save_all=True, append_images=[Image.new("L", (2, 2))] * 2),
            "3 fra",
        ),
        (lambda: BytesIO(), "^cannot identify image file$"),
        (lambda: BytesIO(written(Image.fromarray(COLORS)).getvalue()[:50]), "."),
    ],
    ids=["floats", "integers", "gif", "pages", "empty", "truncated"],
)
def test_what_has_no_one_meaning_is_an_error(file: Any, reason: str) -> None:
    with pytest.raises(OSError, match=reason) as caught:
        read_upright(file())
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for path, reason in [
        (tmp_path, "a folder, not a file"),
        (tmp_path / "fifo.png", "a FIFO, not a file"),
        (Path("/dev/zero"), "a device, not a file"),
        (tmp_path / "nothing.png", "No such file"),
    ]:
        with pytest.raises(OSError, match=reason):
            read_upright(path)


def test_names_can_be_printed() -> None:
    assert printable(Path("a b/ü")) == "a b/ü"
    assert printable(os.fsdecode(b"caf\xe9\n")) == r"caf\udce9\n"
    assert one_line(ValueError("one\n  two")) == "one two"
    assert one_line(MemoryError()) == "MemoryError"
