"""The tables of supported attention classes in `docs/support.md` and in the README, from the registry."""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec

from ...conversion.adapter import Adapter, UnsupportedAdapter
from ...conversion.registry import adapter_libraries, registered_adapters
from ...selection import DEFAULT_INCLUDE
from .catalog import CatalogEntry, attention_classes, model_files

_INTRODUCTION = """\
# What is supported

Written by `precond support --output docs/support.md` from the registry of adapters, for the libraries that were
installed; a test compares the two. A class that is not here is found all the same, by the code that its forward runs,
and listed in the report as unknown. *Include* is what `include` of `precondition_` has to hold, where it does not by
default.
"""

MATRIX_BEGINS = "<!-- Written by `precond support --readme README.md`; a test compares. -->"
MATRIX_ENDS = "<!-- End of what `precond support` writes. -->"

CENSUS_BEGINS = "<!-- Written by `make census`. -->"
CENSUS_ENDS = "<!-- End of what `make census` writes. -->"
_CENSUS_HEADING = """\
## Census

How much attention of other packages is found, in small models that `make census` builds in an environment of its own
and runs once each, watched operator by operator as with `precondition_(..., example_inputs=...)`. *Not read*: classes
that were seen to compute attention and that `plan_conversion` does not list without inputs. *Read and not seen*:
classes that it lists by their code, and in which no softmax reached a product: linear attention by other feature maps,
or a softmax for something else.
"""


@dataclass(frozen=True, order=True)
class SupportedClass:
    """One attention class.

    Args:
        library: the package it is from.
        name: its qualified name without the package.
        status: ``"converted"`` or ``"refused"``.
        kind: of attention.
        mechanism: how it is converted; several if that depends on the installed version or on a subclass.
        include: what ``include`` of `precondition_` has to hold for it, or empty if it does by default.
        remark: what counts as a head's output where that is a choice, or why it is refused.
    """

    library: str
    name: str
    status: str
    kind: str
    mechanism: str
    include: str
    remark: str


def supported_classes() -> tuple[SupportedClass, ...]:
    """Every class with an adapter, by its name or by a look-up, of the libraries that are installed; imports them."""
    absent = {library for module in adapter_libraries() if not find_spec(library := module.partition(".")[0])}
    for module in adapter_libraries():
        if module.partition(".")[0] not in absent:
            importlib.import_module(module)
    by_name: dict[str, list[Adapter]] = {}
    for name, adapter in registered_adapters():
        if name.partition(".")[0] not in absent:
            by_name.setdefault(name, []).append(adapter)
    rows = [_supported(name, adapters) for name, adapters in by_name.items()]
    return tuple(sorted([*rows, *(_looked_up(entry) for entry in _look_ups() if entry.name not in by_name)]))


@functools.cache
def _look_ups() -> tuple[CatalogEntry, ...]:
    """The classes of transformers that look their attention function up; other libraries have none."""
    found: list[CatalogEntry] = []
    for file in model_files("transformers") if find_spec("transformers") else ():
        with suppress(ModuleNotFoundError):  # some files need packages of their own
            found += (entry for entry in attention_classes(file) if entry.looks_up)
    return tuple(found)


def _looked_up(entry: CatalogEntry) -> SupportedClass:
    assert entry.adapter is not None, "a look-up found it"
    row = _supported(entry.name, [entry.adapter])
    return (
        replace(row, status="refused", mechanism="", remark=entry.unsupported_reason)
        if entry.unsupported_reason
        else row
    )


def _supported(name: str, adapters: list[Adapter]) -> SupportedClass:
    first = adapters[0]
    library, _, rest = name.partition(".")
    refused = isinstance(first, UnsupportedAdapter)
    return SupportedClass(
        library=library,
        name=rest,
        status="refused" if refused else "converted",
        kind=first.kind,
        mechanism="" if refused else ", otherwise ".join(dict.fromkeys(a.mechanism for a in adapters)),
        include="" if refused or first.kind in DEFAULT_INCLUDE else first.kind,
        remark=first.reason if isinstance(first, UnsupportedAdapter) else first.definition,
    )


def support_page() -> str:
    """The table as Markdown, library by library."""
    return "\n".join([_INTRODUCTION, *_sections(supported_classes())])


def _sections(classes: tuple[SupportedClass, ...]) -> Iterator[str]:
    for library in sorted({row.library for row in classes}):
        own = [row for row in classes if row.library == library]
        converted = sum(row.status == "converted" for row in own)
        yield f"## {library}\n\n{converted} classes converted, {len(own) - converted} refused.\n"
        yield "| class | status | kind | how | include | remark |\n|---|---|---|---|---|---|"
        for row in own:
            include = f"`{row.include}`" if row.include else ""
            cells = (f"`{row.name}`", row.status, row.kind, row.mechanism, include, row.remark)
            yield f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")
        yield ""


def with_census(page: str, figures: str) -> str:
    """``page``, the table of supported classes, with ``figures`` as its last section, which is replaced."""
    return "\n".join([page.removesuffix(census_of(page)).rstrip(), "", _census_section(figures)])


def census_of(page: str) -> str:
    """The section of ``page`` that :func:`with_census` wrote, or nothing."""
    _, heading, rest = page.partition(_CENSUS_HEADING.partition("\n")[0] + "\n")
    return heading + rest if CENSUS_ENDS in rest else ""


def _census_section(figures: str) -> str:
    return "\n".join([_CENSUS_HEADING, CENSUS_BEGINS, figures, CENSUS_ENDS, ""])


def with_support_matrix(text: str) -> str:
    """``text``, the README, with the table between the two markers replaced.

    Raises:
        ValueError: the text does not have the two markers, one after the other.
    """
    before, begins, rest = text.partition(MATRIX_BEGINS)
    _, ends, after = rest.partition(MATRIX_ENDS)
    if not (begins and ends):
        raise ValueError(f"the text must hold the lines {MATRIX_BEGINS!r} and {MATRIX_ENDS!r}, in this order")
    return "\n".join([before + MATRIX_BEGINS, *_matrix(supported_classes()), MATRIX_ENDS + after])


def _matrix(classes: tuple[SupportedClass, ...]) -> Iterator[str]:
    """A line for every library."""
    yield "| library | attention classes converted | of these not by default | refused, with the reason | how |"
    yield "|---|---|---|---|---|"
    for library in sorted({row.library for row in classes}):
        own = [row for row in classes if row.library == library]
        converted = [row for row in own if row.status == "converted"]
        not_by_default = sum(bool(row.include) for row in converted)
        ways = Counter(row.mechanism.partition(",")[0] for row in converted).most_common()
        how = ", ".join(f"{way} ({number})" for way, number in ways)
        yield f"| {library} | {len(converted)} | {not_by_default} | {len(own) - len(converted)} | {how} |"
