"""One HTML page without scripts; its pictures are embedded, or files in its folder."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal
from urllib.parse import quote

from ..._extras import require
from .tables import Table

if TYPE_CHECKING:
    import jinja2

LARGE = 1200  # pixels across; plots have fewer, rows of images more

Tone = Literal["good", "bad", "open", "warning"]


@dataclass(frozen=True)
class Text:
    """Paragraphs of plain text; ``terms`` are (term, explanation) pairs shown as a list below them."""

    kind: ClassVar[str] = "text"
    paragraphs: tuple[str, ...] = ()
    terms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Callout:
    """A highlighted statement."""

    kind: ClassVar[str] = "callout"
    tone: Tone
    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A PNG, its description (``alt`` text) and the caption below it.

    Args:
        png: the content of a PNG file.
        description: what it shows, for readers who cannot see it.
        caption: the text below it.
        file: the name of its file in the folder of the page; None embeds it.
    """

    png: bytes
    description: str
    caption: str
    file: str | None = None

    @property
    def source(self) -> str:
        """The address in the page: the file's name, percent-encoded, or a ``data:`` URI."""
        if self.file is not None:
            return quote(self.file)
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def is_wide(self) -> bool:
        """Whether it is large and flat, and therefore too small when next to another."""
        if len(self.png) < 24:  # not a PNG; browsers show the description
            return False
        width, height = struct.unpack_from(">II", self.png, 16)  # in the header of a PNG file
        return width > max(LARGE, 2 * height)

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON, the PNG in base 64; without the name of its file."""
        png = base64.b64encode(self.png).decode("ascii")
        return {"png": png, "description": self.description, "caption": self.caption}

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Picture:
        """The inverse of :meth:`to_dict`."""
        return cls(base64.b64decode(values["png"]), values["description"], values["caption"])


@dataclass(frozen=True)
class Figures:
    """Pictures side by side, or below each other on a narrow screen or if one is wide."""

    kind: ClassVar[str] = "figures"
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Listing:
    """Preformatted texts, each below its title."""

    kind: ClassVar[str] = "listing"
    items: tuple[tuple[str, str], ...]


Block = Text | Callout | Figures | Listing | Table


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it; ``folded`` sections open on a click."""

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A page: title, subtitle, sections and footer."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    footer: str

    @property
    def pictures(self) -> Iterator[Picture]:
        """Every picture on the page, from top to bottom."""
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Figures):
                    yield from block.pictures


@cache
def _environment() -> jinja2.Environment:
    template_engine = require("jinja2", extra="train")
    return template_engine.Environment(
        loader=template_engine.PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=template_engine.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_html(page: Page) -> str:
    """The page as HTML text (``jinja2``, extra ``train``). Every string is escaped."""
    return _environment().get_template("page.html.j2").render(page=page)
