"""Reading of whole files and atomic writes of files and folders, with errors that name the file."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
_WRITTEN = " could not be written: "


def open_file(path: Path | str, *, kind: str = "") -> BufferedReader:
    """Open a regular file for reading bytes; a pipe, which would be waited for, or a device is an error.

    Args:
        path: the file.
        kind: what it is, such as ``"recipe file"``, for messages.

    Raises:
        OSError: there is no such file, or it cannot be opened, or is a folder, a pipe or a device.
    """
    name = f"{kind} {path}".strip()
    if "\0" in str(path):
        raise FileNotFoundError(f"{name!r} cannot be read: a file's name holds no NUL character")
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return Path(path).open("rb")
    except OSError as error:
        raise _with_message(error, f"{name} cannot be read: {error.strerror or error}") from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{name} cannot be read: it is a folder, and a file is expected")
    raise OSError(f"{name} cannot be read: it is a pipe, a socket or a device, and a file is expected")


def read_bytes(path: Path | str, *, kind: str = "") -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as :func:`open_file`, or it cannot be read to its end.
    """
    with open_file(path, kind=kind) as file:
        try:
            return file.read()
        except OSError as error:
            raise _with_message(error, f"{kind} {path} cannot be read: {error.strerror or error}".strip()) from error


def read_text(path: Path | str, *, kind: str = "") -> str:
    """The text of a regular UTF-8 file, without a byte order mark; ``kind`` as in :func:`open_file`.

    Raises:
        ValueError: it is not UTF-8; the message names file, line and byte.
        OSError: as :func:`read_bytes`.
    """
    content = read_bytes(path, kind=kind)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{kind} {path} is not UTF-8 (line {line}, byte 0x{content[error.start]:02x}: {error.reason}); ".lstrip()
            + ("it begins as UTF-16 does: " if utf_16 else "")
            + "save it as UTF-8"
        ) from error


def read_json(path: Path | str, *, kind: str = "") -> dict[str, Any]:
    """The object in a JSON file; ``kind`` as in :func:`open_file`.

    Raises:
        ValueError: it is not UTF-8, not JSON (as a file cut short is), holds a key twice, or is no object.
        OSError: as :func:`read_bytes`.
    """
    text = read_text(path, kind=kind)
    name = f"{kind} {path}".strip()
    try:
        content = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{name} is not valid JSON ({reason}); write it again, or restore a copy") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold a JSON object, {{...}}; got {type(content).__name__}")
    return content


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return content


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path``: a reader, also after a crash, finds the old content or the new, never a part.

    A character that stands for a byte of a file's name that is not UTF-8 is written as ``\\udc..``.

    Raises:
        OSError: it could not be written; the message names ``path``, which is as it was.
    """
    check_file_to_write(path)
    with naming_file(path):
        path = path.resolve()  # what a link leads to is written, and the link stays
        temporary = path.with_name(f".{path.name}.writing")
        try:
            temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            publish(temporary, path)
        except BaseException:
            if temporary.exists():
                temporary.unlink()
            raise


def check_file_to_write(path: Path) -> None:
    """Check, before the work that it takes to make its content, that ``path`` can be a file in a folder that exists.

    Raises:
        OSError: it is a folder, a pipe or a device, its folder does not exist, or nothing can be written there.
    """
    if not path.name or path.is_dir():
        raise IsADirectoryError(f"{path}{_WRITTEN}it is a folder, and the name of a file is expected")
    if path.exists() and not path.is_file():  # a renamed file would take the place of /dev/stdout
        raise OSError(f"{path}{_WRITTEN}it is a pipe or a device, and the name of a file is expected")
    folder = path.resolve().parent
    if not folder.is_dir():
        missing = f"{folder} is {'a file' if folder.exists() else 'missing'}"
        raise FileNotFoundError(f"{path}{_WRITTEN}its folder {missing}; make it, or choose another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}{_WRITTEN}its folder {folder} does not allow it")


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file or folder to ``path``, after everything in it was flushed to the disk.

    Raises:
        OSError: it could not be done; the message names ``path``.
    """
    with naming_file(path):
        for child in sorted(temporary.rglob("*"), reverse=True) if temporary.is_dir() else ():
            _flush_to_disk(child)
        _flush_to_disk(temporary)
        temporary.replace(path)
        _flush_to_disk(path.parent)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Errors of the system inside name ``path``, which is being written: that of a full disk names no file itself.

    Raises:
        OSError: of the class and with the number of the error inside.
    """
    try:
        yield
    except OSError as error:
        if _WRITTEN in str(error):  # it is named already
            raise
        hint = "; free some space, or choose another folder" if error.errno in _FULL else ""
        raise _with_message(error, f"{path}{_WRITTEN}{error.strerror or error}{hint}") from error


def _with_message(error: OSError, message: str) -> OSError:
    """An error of the class and number of ``error``."""
    named = type(error)(message)
    named.errno = error.errno
    return named


def _flush_to_disk(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders; its rename is atomic without
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
