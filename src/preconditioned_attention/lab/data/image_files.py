"""Reading image files: one picture, RGB, 8 bits per channel, or a reason why not.

Pixels of 16 bits are scaled to 8 (Pillow's own conversion cuts them at 255), transparent pixels are laid on white. What
has no one meaning is an error: integers of 32 bits and floats, whose range no file tells, and several frames.
"""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..._extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

ORIENTATION = 0x0112  # the tag of EXIF
TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
"""What makes images of the orientations 2 to 8 upright."""
# Formats whose pixels of 16 bits some versions of Pillow give as integers of 32.
SIXTEEN_BITS = ("PNG", "PPM")


def read_upright(source: Path | BinaryIO) -> Image:
    """The picture of an image file, turned as its EXIF orientation says.

    Args:
        source: a path, or an open file.

    Raises:
        OSError: it cannot be read; the message is a reason in one line and does not name the file.
    """
    image, turn = read_stored(source)
    return image if turn is None else image.transpose(turn)


def read_stored(source: Path | BinaryIO) -> tuple[Image, Any]:
    """The picture of an image file as it is stored, and the ``PIL.Image.Transpose`` that makes it upright, or None.

    Raises:
        OSError: as in :func:`read_upright`.
    """
    pillow = require("PIL.Image", extra="vision")
    try:
        if isinstance(source, Path):
            check_regular(source)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(source) as opened:
                _check_frames(opened)
                opened.load()
                return as_rgb(opened), _turn(opened)
    except pillow.UnidentifiedImageError as error:  # whose message names the file, or the object that reads it
        raise OSError("cannot identify image file") from error
    except Exception as error:  # Pillow raises errors of many kinds for broken files
        raise OSError(one_line(error)) from error


def as_rgb(image: Image) -> Image:
    """The image in RGB, 8 bits per channel.

    Raises:
        ValueError: its pixels are integers of 32 bits or floats.
    """
    pillow = require("PIL.Image", extra="vision")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        numpy = require("numpy", extra="vision")
        gray = (numpy.asarray(image).astype(numpy.int64) + 128) // 257  # 65535 becomes 255
        return pillow.fromarray(gray.astype(numpy.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "integers of 32 bits" if image.mode == "I" else "floats"
        raise ValueError(f"its pixels are {kind}, whose range is not known; save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), picture).convert("RGB")
    return image.convert("RGB")


def check_regular(path: Path) -> None:
    """Raise unless ``path`` is a file: opening a FIFO would wait for ever, and a device may never end.

    Raises:
        OSError: there is nothing, or a folder, a FIFO, a socket or a device.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        raise OSError(f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")


def printable(name: object) -> str:
    """A name for messages and pages: bytes that are not UTF-8 and line breaks are escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode("ascii") for one in str(name)
    )


def one_line(error: BaseException) -> str:
    """The message of an error in one line, or its type if it has none."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def _check_frames(image: Any) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photo with previews in the same file; the first one is the photo
        raise ValueError(f"it holds {frames} frames; save the one that is meant as a file of its own")


def _turn(image: Any) -> Any:
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # of a broken block of EXIF, beside a picture that can be read
        return None
    if orientation not in range(2, len(TURNS) + 2):
        return None
    return getattr(require("PIL.Image", extra="vision").Transpose, TURNS[orientation - 2])
