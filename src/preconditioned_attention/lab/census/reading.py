"""For maintainers: what of an installed library's attention was not read yet, and the record of what was.

Reading is looking at what happens between a class's attention and the module that its adapter hooks, or, where it
looks its function up, between the look-up's result and the projection: the heads' rows have to come out as they are,
not normalised, subtracted or mixed. `precond texts` prints the code; with `--accept` it is recorded as read.
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
from ...conversion.class_names import class_name
from ...conversion.registry import UnsupportedAdapter, adapter_libraries, find_adapter, registered_adapters
from ...conversion.source_texts.known_texts import (
    TABLE,
    Library,
    concerns_rows,
    is_read,
    is_read_lookup,
    known_texts,
    lookup_digests,
)
from ...conversion.source_texts.reachable_code import Reached, function_digest, methods_digest, reachable_from
from .catalog import model_files, module_classes

# They compute for a class that is converted, and are not converted on their own.
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
class Reading:
    """One text to read.

    Args:
        name: of the class.
        cls: the class.
        entry: the method that computes.
        by_look_up: whether it is served because it looks its attention function up.
    """

    name: str
    cls: type
    entry: str = "forward"
    by_look_up: bool = False

    def reached(self) -> Reached:
        """What it runs."""
        return reachable_from(self.cls, self.entry)

    def is_known(self) -> bool:
        """Whether this text was read."""
        if self.by_look_up:
            return is_read_lookup(self.reached(), "transformers")
        return is_read(self.cls, self.cls, self.entry)

    def code(self) -> str:
        """What there is to read: its methods, and the functions of their file that they call."""
        reached = self.reached()
        functions = [layer for method in reached.methods for layer in method.layers[-1:]]
        functions += [function for name, function in sorted(reached.functions, key=lambda f: f[0])]
        return "\n".join(inspect.getsource(function.__code__) for function in functions)


def readings(library: str) -> tuple[Reading, ...]:
    """Every text that an adapter of ours relies on, in the version of ``library`` that is installed; imports it.

    Raises:
        ValueError: no text of that library is recorded.
    """
    check_known("library", [library], tuple(known_texts()))
    for module in adapter_libraries():
        if module.partition(".")[0] == library:
            with suppress(ImportError):  # older versions do not have every file
                importlib.import_module(module)
    found = [*_by_name(library), *(_by_look_up() if library == "transformers" else ())]
    return tuple(sorted(found, key=lambda reading: reading.name))


def unread(library: str) -> tuple[Reading, ...]:
    """Those of :func:`readings` that were not read."""
    return tuple(reading for reading in readings(library) if not reading.is_known())


def _by_name(library: str) -> Iterator[Reading]:
    adapters = {name: adapter for name, adapter in registered_adapters() if not isinstance(adapter, UnsupportedAdapter)}
    for name in (*adapters, *PARTS):
        cls = _existing(name) if name.startswith(f"{library}.") else None
        if cls is not None and not _is_served_by_look_up(Reading(name, cls)):
            yield Reading(name, cls)
    if library == "diffusers":
        from ...conversion.adapters.diffusers.tables import KNOWN_PROCESSORS

        for name in KNOWN_PROCESSORS:
            cls = _existing(name)
            if cls is not None:
                yield Reading(name, cls, "__call__")


def _existing(name: str) -> type | None:
    """The class of that name, if this version of its library has it."""
    module, _, cls = name.rpartition(".")
    with suppress(ImportError):
        return getattr(importlib.import_module(module), cls, None)
    return None


def _by_look_up() -> Iterator[Reading]:
    for file in model_files("transformers"):
        with suppress(ImportError):  # some files need packages of their own
            for cls in module_classes(importlib.import_module(file)):
                reading = Reading(class_name(cls), cls, by_look_up=True)
                refused = isinstance(find_adapter(cls.__new__(cls)), UnsupportedAdapter)
                if not refused and _is_served_by_look_up(reading):
                    yield reading


def _is_served_by_look_up(reading: Reading) -> bool:
    """Whether it always looks its function up; some take one out of the table now and then, and are hooked."""
    names = reading.reached().names()
    looks_up = {"ALL_ATTENTION_FUNCTIONS", "get_interface"} <= names
    return looks_up and not _INDEXES_THE_TABLE.search(reading.code())


def record(read: Iterable[Reading], library: str, table: Path = TABLE) -> None:
    """Add texts that were read, and the version they were read in, to the table."""
    known = known_texts()
    entry = known[library]
    for reading in read:
        _add(entry["look_ups" if reading.by_look_up else "classes"], reading.name, methods_digest(reading.reached()))
        for name, function in reading.reached().functions:
            if concerns_rows(name):
                _add(entry["functions"], name, function_digest(function))
    installed = version(_DISTRIBUTIONS.get(library, library)).partition("+")[0]
    entry["versions"] = sorted({*entry["versions"], installed}, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
    write_atomically(table, _written(known))
    lookup_digests.cache_clear()


def _add(texts: dict[str, list[str]], name: str, digest: str | None) -> None:
    if digest is None:
        raise ValueError(f"the source of {name} is not at hand; install its library with its files")
    texts[name] = sorted({*texts.get(name, ()), digest})


def _written(known: dict[str, Library]) -> str:
    """JSON with a line for every name."""
    text = json.dumps(known, indent=1, sort_keys=True)
    return re.sub(r"\[\s+([^\]]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]", text) + "\n"
