"""The sweep: what a conversion does to all attention of the installed libraries.

Models of timm and torchvision are built without weights, converted with `include="all"` and restored. Of the other
libraries, whose models need a configuration each, every class of every model file is looked at.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..._extras import require
from ...conversion import plan_conversion, precondition_, restore_
from ...conversion.class_names import class_name
from ...conversion.entry import ConversionEntry
from ...conversion.registry import find_adapter
from .catalog import CatalogEntry, attention_classes, installed_libraries, model_files

SOFTMAX = "models with softmax attention"
OTHER = "models with other attention"
WITHOUT = "models without attention"
LOOKING_UP = "classes that look attention up"
CLASSES = "attention classes"
PROCESSORS = "processors"
FILES = "model files"

Outcome = Literal["exactly", "defined", "refused", "unknown", "failed", "absent", "none"]

_WHOLE_MODELS = ("timm", "torchvision")


@dataclass(frozen=True)
class Subject:
    """One unit of work: a model of a library, or one of its model files."""

    library: str
    name: str


@dataclass(frozen=True)
class Finding:
    """The outcome for one model or class.

    Args:
        library: the package it is from.
        what: what is counted.
        name: of the model or class.
        outcome: ``"exactly"``: converted, its heads' outputs being what the method says; ``"defined"``:
            converted, what counts as a head's output being a choice; ``"refused"``: with ``reason``; ``"unknown"``:
            some attention has no adapter; ``"failed"``: an error; ``"absent"``: it needs a package that is not
            installed; ``"none"``: no attention.
        reason: the definition, the reason of a refusal, the unknown class, or the error.
    """

    library: str
    what: str
    name: str
    outcome: Outcome
    reason: str = ""


def subjects(library: str) -> tuple[Subject, ...]:
    """Everything of ``library`` to look at; imports it.

    Raises:
        ValueError: the library is not one that can be swept, or it is not installed.
    """
    if not installed_libraries().get(library):
        known = ", ".join(name for name, there in installed_libraries().items() if there)
        raise ValueError(f"library must be one that is installed and known ({known}); got {library!r}")
    if library in _WHOLE_MODELS:
        return tuple(Subject(library, name) for name in _model_names(library))
    return tuple(Subject(library, name) for name in model_files(library))


def sweep(
    chosen: Iterable[Subject], *, jobs: int = 1, on_progress: Callable[[], None] = lambda: None
) -> tuple[Finding, ...]:
    """Look at every subject, in ``jobs`` processes, and call ``on_progress`` after each.

    Raises:
        ValueError: ``jobs`` is not positive.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    if jobs == 1:
        return _gathered(map(look_at, chosen), on_progress)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return _gathered(pool.map(look_at, chosen, chunksize=8), on_progress)


def _gathered(results: Iterable[tuple[Finding, ...]], on_progress: Callable[[], None]) -> tuple[Finding, ...]:
    findings: list[Finding] = []
    for found in results:
        findings += found
        on_progress()
    return tuple(findings)


def look_at(subject: Subject) -> tuple[Finding, ...]:
    """What became of one subject; an error is a finding too, so that one model does not end the sweep."""
    look = _in_model if subject.library in _WHOLE_MODELS else _in_file
    try:
        return tuple(look(subject))
    except Exception as error:
        what = WITHOUT if subject.library in _WHOLE_MODELS else FILES
        outcome: Outcome = "absent" if isinstance(error, ModuleNotFoundError) else "failed"
        return (Finding(subject.library, what, subject.name, outcome, f"{type(error).__name__}: {error}"),)


def _in_model(subject: Subject) -> Iterator[Finding]:
    """One finding for the softmax attention of a model and one for the rest, if there is any."""
    model = _build(subject)
    kinds = {path: getattr(find_adapter(module), "kind", None) for path, module in model.named_modules()}
    report = plan_conversion(model, include="all")
    if report.converted:
        _convert_and_restore(model)
    softmax = [
        entry for entry in report.entries if kinds[entry.path] in ("softmax", "class_attention", "pooling", None)
    ]
    others = [entry for entry in report.entries if entry not in softmax]
    for what, entries in ((SOFTMAX, softmax), (OTHER, others)):
        if entries:
            yield Finding(subject.library, what, subject.name, *_outcome(entries))
    if not report.entries:
        yield Finding(subject.library, WITHOUT, subject.name, "none")


def _model_names(library: str) -> list[str]:
    """Those that `build` can build; torchvision's detectors and segmenters download a backbone and have none of it."""
    if library == "timm":
        return list(importlib.import_module("timm").list_models())
    models = importlib.import_module("torchvision.models")
    return [name for module in (models, models.video) for name in models.list_models(module=module)]


def _build(subject: Subject) -> nn.Module:
    with torch.device("meta"):
        if subject.library == "timm":
            model: nn.Module = importlib.import_module("timm").create_model(subject.name)
            return model
        return _build_of_torchvision(subject.name)


def _build_of_torchvision(name: str) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    options = {"input_size": (224, 224)} if name == "maxvit_t" else {}  # it has no default
    try:
        model: nn.Module = models.get_model(name, weights=None, **options)
    except NotImplementedError:  # its constructor computes with tensors
        with torch.device("cpu"), require("accelerate", extra="train").init_empty_weights():
            model = models.get_model(name, weights=None, **options)
    return model


def _convert_and_restore(model: nn.Module) -> None:
    """Convert and restore, and compare the model with what it was.

    Raises:
        RuntimeError: restored, the model has other classes, hooks or keys than before.
    """
    before = _anatomy(model)
    precondition_(model, include="all")
    restore_(model)
    if _anatomy(model) != before:
        raise RuntimeError("restored, the model is not what it was")


def _anatomy(model: nn.Module) -> list[object]:
    modules = [(path, type(m), len(m._forward_pre_hooks), len(m._forward_hooks)) for path, m in model.named_modules()]
    return [*modules, *model.state_dict()]


def _outcome(entries: list[ConversionEntry]) -> tuple[Outcome, str]:
    """The worst of a model's attention, and why."""
    unknown = [entry.class_name for entry in entries if entry.status == "unknown"]
    refused = [entry.reason for entry in entries if entry.status != "converted"]
    definitions = [entry.reason for entry in entries if entry.reason]
    if unknown:
        return "unknown", unknown[0]
    if refused:
        return "refused", refused[0]
    return ("defined", definitions[0]) if definitions else ("exactly", "")


def _in_file(subject: Subject) -> Iterator[Finding]:
    """One finding for every attention class of a model file."""
    for entry in attention_classes(subject.name):
        what = LOOKING_UP if entry.looks_up else CLASSES
        yield Finding(subject.library, what, entry.name, *_outcome_of_class(entry))
    if subject.library == "diffusers":
        yield from _processors(subject)


def _outcome_of_class(entry: CatalogEntry) -> tuple[Outcome, str]:
    if entry.adapter is None:
        return "unknown", "no adapter is registered for it"
    if entry.unsupported_reason:
        return "refused", entry.unsupported_reason
    return ("defined", entry.adapter.definition) if entry.adapter.definition else ("exactly", "")


def _processors(subject: Subject) -> Iterator[Finding]:
    """One finding for every processor of diffusers, which its attention classes leave computing to."""
    from ...conversion.adapters.diffusers.processors import is_processor
    from ...conversion.adapters.diffusers.tables import KNOWN_PROCESSORS
    from ...conversion.adapters.diffusers.unsupported import UNSUPPORTED_PROCESSORS

    file = importlib.import_module(subject.name)
    for cls in vars(file).values():
        if isinstance(cls, type) and cls.__module__ == file.__name__ and is_processor(cls):
            name = class_name(cls)
            if name in KNOWN_PROCESSORS:
                yield Finding(subject.library, PROCESSORS, name, "exactly")
            elif name in UNSUPPORTED_PROCESSORS:
                yield Finding(subject.library, PROCESSORS, name, "refused", UNSUPPORTED_PROCESSORS[name])
            else:
                yield Finding(subject.library, PROCESSORS, name, "unknown", "it was not reviewed")


def is_complete(findings: Iterable[Finding]) -> bool:
    """Whether everything was looked at, nothing is unknown, and every model with softmax attention was converted."""
    return not any(
        finding.outcome in ("unknown", "failed") or (finding.what == SOFTMAX and finding.outcome == "refused")
        for finding in findings
    )
