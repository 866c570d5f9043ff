import base64
import io
from html.parser import HTMLParser

import PIL.Image
import pytest

from preconditioned_attention.lab.reporting import (
    Callout,
    Figures,
    Listing,
    Page,
    Picture,
    Section,
    Table,
    Text,
    render_html,
)

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Reader(HTMLParser):
    """Collects tags with their attributes, the text, and whether every tag was closed."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.words.append(data.strip())


def page(*blocks, folded: bool = False) -> Page:
    return Page("A title", "below it", (Section("A section", blocks, folded),), "the end")


@pytest.fixture
def everything() -> Page:
    return page(
        Text(("A paragraph.",), terms=(("a term", "what it means"),)),
        Callout("good", "Better", ("First.", "Second.")),
        Figures((Picture(PNG, "a dot", "The dot."),)),
        Table(title="Numbers", columns=("arm", "x"), rows=(("plain", "0.5"),), note="A note."),
    )


def test_everything_is_on_the_page(everything):
    reader = Reader(render_html(everything))
    assert reader.open == []
    for text in (
        "A title",
        "below it",
        "A section",
        "A paragraph.",
        "a term",
        "what it means",
        "Better",
        "First.",
        "Second.",
    ):
        assert text in reader.words
    for text in ("The dot.", "Numbers", "arm", "x", "plain", "0.5", "A note.", "the end"):
        assert text in reader.words


def test_nothing_is_fetched(everything):
    text = render_html(everything)
    assert "http" not in text.lower().replace("http-equiv", "")
    assert "@import" not in text
    assert "url(" not in text
    tags = Reader(text).tags
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in tags}
    sources = [attributes["src"] for _, attributes in tags if "src" in attributes]
    assert sources == ["data:image/png;base64," + base64.b64encode(PNG).decode()]


def test_pictures_have_descriptions(everything):
    assert [attributes["alt"] for tag, attributes in Reader(render_html(everything)).tags if tag == "img"] == ["a dot"]


@pytest.mark.parametrize(
    ("size", "kind"), [((1300, 400), "figures wide"), ((1300, 700), "figures"), ((1000, 300), "figures")]
)
def test_wide_pictures_stand_below_each_other(size, kind):
    buffer = io.BytesIO()
    PIL.Image.new("L", size).save(buffer, "PNG")
    pictures = (Picture(buffer.getvalue(), "one", ""), Picture(PNG, "two", ""), Picture(b"", "nothing", ""))
    tags = Reader(render_html(page(Figures(pictures)))).tags
    assert [a["class"] for tag, a in tags if tag == "div" and "figures" in (a.get("class") or "")] == [kind]


def test_text_is_escaped():
    evil = "<script>alert('x')</script>"
    blocks = (
        Text((evil,), ((evil, evil),)),
        Callout("bad", evil, (evil,)),
        Figures((Picture(PNG, evil + '"', evil),)),
        Table(title=evil, columns=(evil,), rows=((evil,),), note=evil),
    )
    reader = Reader(render_html(page(*blocks)))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.words.count(evil) == 10


def test_folded_sections_can_be_opened(everything):
    assert "details" not in {tag for tag, _ in Reader(render_html(everything)).tags}
    assert "details" in {tag for tag, _ in Reader(render_html(page(Text(("x",)), folded=True))).tags}


def test_words_are_aligned_left_and_numbers_right():
    table = Table(title="t", columns=("a", "b", "c"), rows=(("1", "2", "3"),), text_columns=2)
    classes = [attributes.get("class") for tag, attributes in Reader(render_html(page(table))).tags if tag == "td"]
    assert classes == ["words", "words", None]


def test_listings_keep_spaces_and_line_breaks():
    text = "def f():\n    return '<b>'\n"
    html = render_html(page(Listing((("from nothing", text),))))
    assert f"<pre>{text.replace('<', '&lt;').replace('>', '&gt;').replace(chr(39), '&#39;')}</pre>" in html
    assert '<p class="listed">from nothing</p>' in html


def test_a_picture_with_a_file_is_linked_and_listed():
    linked = Picture(PNG, "a dot", "", file="a dot.png")
    one = page(Figures((linked, Picture(PNG, "embedded", ""))))
    sources = [attributes["src"] for tag, attributes in Reader(render_html(one)).tags if tag == "img"]
    assert sources[0] == "a%20dot.png"
    assert sources[1].startswith("data:image/png;base64,")
    assert [picture.description for picture in one.pictures] == ["a dot", "embedded"]
