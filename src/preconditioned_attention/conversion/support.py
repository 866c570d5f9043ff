"""What is supported, read from the registry: the table of `docs/support.md`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from .convert import KIND_OPTIONS
from .registry import Adapter, Refused, adapter_libraries, registered_adapters

_INTRODUCTION = """\
# What is supported

Written by `precond support --output docs/support.md` from the registry of adapters; a test compares the two. A class
that is not here is found all the same, by the code that its forward runs, and listed in the report as unknown.

Beside these, every class of transformers that looks its attention function up in `ALL_ATTENTION_FUNCTIONS` is
converted, whatever its name. *Option* is the field of `PreconditionConfig` that has to be True.
"""


@dataclass(frozen=True, order=True)
class SupportedClass:
    """One attention class.

    Args:
        library: the package it is from.
        name: its qualified name without the package.
        status: ``"converted"`` or ``"refused"``.
        kind: of attention.
        mechanism: how it is converted; several if what serves depends on the installed version or on a subclass.
        option: the option that asks for it, or empty.
        remark: what counts as a head's output where that is a choice, or why it is refused.
    """

    library: str
    name: str
    status: str
    kind: str
    mechanism: str
    option: str
    remark: str


def supported_classes() -> tuple[SupportedClass, ...]:
    """Every class with an adapter, of the libraries that are installed; imports them."""
    for module in adapter_libraries():
        if find_spec(module.partition(".")[0]):
            importlib.import_module(module)
    by_name: dict[str, list[Adapter]] = {}
    for name, adapter in registered_adapters():
        by_name.setdefault(name, []).append(adapter)
    return tuple(sorted(_supported(name, adapters) for name, adapters in by_name.items()))


def _supported(name: str, adapters: list[Adapter]) -> SupportedClass:
    first = adapters[0]
    library, _, rest = name.partition(".")
    refused = isinstance(first, Refused)
    default = {"channel": ""}  # asked for unless it is switched off
    return SupportedClass(
        library=library,
        name=rest,
        status="refused" if refused else "converted",
        kind=first.kind,
        mechanism="" if refused else ", otherwise ".join(dict.fromkeys(a.mechanism for a in adapters)),
        option="" if refused else default.get(first.kind, KIND_OPTIONS.get(first.kind, "")),
        remark=first.reason if isinstance(first, Refused) else first.definition,
    )


def support_page() -> str:
    """The table as Markdown, library by library."""
    return "\n".join([_INTRODUCTION, *_sections(supported_classes())])


def _sections(classes: tuple[SupportedClass, ...]) -> Iterator[str]:
    for library in sorted({row.library for row in classes}):
        own = [row for row in classes if row.library == library]
        converted = sum(row.status == "converted" for row in own)
        yield f"## {library}\n\n{converted} classes converted, {len(own) - converted} refused.\n"
        yield "| class | status | kind | how | option | remark |\n|---|---|---|---|---|---|"
        for row in own:
            option = f"`{row.option}`" if row.option else ""
            cells = (f"`{row.name}`", row.status, row.kind, row.mechanism, option, row.remark)
            yield f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")
        yield ""
