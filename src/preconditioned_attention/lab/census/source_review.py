"""For maintainers: the attention classes of an installed library whose source was not reviewed, and recording reviews.

A review looks at what happens between the attention of a class and the module that its adapter hooks, or, where the
class looks its attention function up, between that function and the projection: the heads' rows have to come out
unchanged, not normalized, subtracted or mixed. `precond texts` prints the source; `--accept` records a review.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..._checks import check_known
from ..._files import write_atomically
from ...conversion.adapter import UnsupportedAdapter
from ...conversion.class_names import class_name
from ...conversion.registry import adapter_libraries, find_adapter, registered_adapters
from ...conversion.source_texts.known_texts import (
    TABLE,
    Library,
    concerns_rows,
    is_reviewed,
    is_reviewed_lookup,
    known_texts,
    lookup_digests,
)
from ...conversion.source_texts.reachable_code import Reached, function_digest, methods_digest, reachable_from
from .catalog import model_files, module_classes

# Parts of converted classes, which are not converted by themselves.
PARTS = (
    "transformers.models.big_bird.modeling_big_bird.BigBirdBlockSparseAttention",
    "transformers.models.bigbird_pegasus.modeling_bigbird_pegasus.BigBirdPegasusBlockSparseAttention",
    "transformers.models.squeezebert.modeling_squeezebert.MatMulWrapper",
    "x_transformers.attend.Attend",
    "x_transformers.x_transformers.CoPE",
)
_DISTRIBUTIONS = {"open_clip": "open_clip_torch"}
_INDEXES_THE_TABLE = re.compile(r"\bALL_ATTENTION_FUNCTIONS\[")


@dataclass(frozen=True)
class SourceText:
    """The source text of one class.

    Args:
        name: of the class.
        cls: the class.
        entry: the method that computes.
        by_lookup: whether it is converted because it looks its attention function up.
    """

    name: str
    cls: type
    entry: str = "forward"
    by_lookup: bool = False

    def reached(self) -> Reached:
        """The methods and functions that it runs."""
        return reachable_from(self.cls, self.entry)

    def is_reviewed(self) -> bool:
        """Whether this text was reviewed."""
        if self.by_lookup:
            return is_reviewed_lookup(self.reached(), "transformers")
        return is_reviewed(self.cls, self.cls, self.entry)

    def code(self) -> str:
        """The source of its methods, and of the functions of their file that they call."""
        reached = self.reached()
        functions = [layer for method in reached.methods for layer in method.layers[-1:]]
        functions += [function for name, function in sorted(reached.functions, key=lambda f: f[0])]
        return "\n".join(inspect.getsource(function.__code__) for function in functions)


def source_texts(library: str) -> tuple[SourceText, ...]:
    """The texts that our adapters depend on, in the installed version of ``library``, which is imported.

    Raises:
        ValueError: no text of that library is recorded.
    """
    check_known("library", [library], tuple(known_texts()))
    for module in adapter_libraries():
        if module.partition(".")[0] == library:
            with suppress(ImportError):  # older versions do not have every file
                importlib.import_module(module)
    found = [*_by_name(library), *(_by_lookup() if library == "transformers" else ())]
    return tuple(sorted(found, key=lambda text: text.name))


def unreviewed(library: str) -> tuple[SourceText, ...]:
    """Those of :func:`source_texts` that were not reviewed."""
    return tuple(text for text in source_texts(library) if not text.is_reviewed())


def _by_name(library: str) -> Iterator[SourceText]:
    adapters = {name: adapter for name, adapter in registered_adapters() if not isinstance(adapter, UnsupportedAdapter)}
    for name in (*adapters, *PARTS):
        cls = _existing(name) if name.startswith(f"{library}.") else None
        if cls is not None and not _is_converted_by_lookup(SourceText(name, cls)):
            yield SourceText(name, cls)
    if library == "diffusers":
        from ...conversion.adapters.diffusers.tables import KNOWN_PROCESSORS

        for name in KNOWN_PROCESSORS:
            cls = _existing(name)
            if cls is not None:
                yield SourceText(name, cls, "__call__")


def _existing(name: str) -> type | None:
    """The class of that name, if this version of its library has it."""
    module, _, cls = name.rpartition(".")
    with suppress(ImportError):
        return getattr(importlib.import_module(module), cls, None)
    return None


def _by_lookup() -> Iterator[SourceText]:
    for file in model_files("transformers"):
        with suppress(ImportError):  # some files need packages of their own
            for cls in module_classes(importlib.import_module(file)):
                text = SourceText(class_name(cls), cls, by_lookup=True)
                refused = isinstance(find_adapter(cls.__new__(cls)), UnsupportedAdapter)
                if not refused and _is_converted_by_lookup(text):
                    yield text


def _is_converted_by_lookup(text: SourceText) -> bool:
    """Whether it always looks its function up; classes that index the table in some calls only are hooked."""
    names = text.reached().names()
    looks_up = {"ALL_ATTENTION_FUNCTIONS", "get_interface"} <= names
    return looks_up and not _INDEXES_THE_TABLE.search(text.code())


def record_review(reviewed: Iterable[SourceText], library: str, table: Path = TABLE) -> None:
    """Add reviewed texts, and the installed version, to the table."""
    known = known_texts()
    entry = known[library]
    for text in reviewed:
        _add(entry["look_ups" if text.by_lookup else "classes"], text.name, methods_digest(text.reached()))
        for name, function in text.reached().functions:
            if concerns_rows(name):
                _add(entry["functions"], name, function_digest(function))
    installed = version(_DISTRIBUTIONS.get(library, library)).partition("+")[0]
    entry["versions"] = sorted({*entry["versions"], installed}, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
    write_atomically(table, _written(known))
    lookup_digests.cache_clear()


def _add(texts: dict[str, list[str]], name: str, digest: str | None) -> None:
    if digest is None:
        raise ValueError(f"the source of {name} is not available; install its library with its files")
    texts[name] = sorted({*texts.get(name, ()), digest})


def _written(known: dict[str, Library]) -> str:
    """JSON with a line for every name."""
    text = json.dumps(known, indent=1, sort_keys=True)
    return re.sub(r"\[\s+([^\]]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]", text) + "\n"
