"""The plan of a conversion: every attention module of a model, and what is done with it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from ..config import ROW_BACKENDS, PreconditionConfig
from ..selection import DEFAULT_INCLUDE, KINDS, AttentionKind, Include, check_include
from .adapter import Adapter, HeadShape
from .class_names import class_name
from .detection.runtime import call_arguments, detect_in_run, unlisted_attention
from .detection.static import computes_attention
from .entry import ConversionEntry, Status
from .guards.dynamic_class import unknown_reason
from .guards.instance_forward import unknown_forward_reason
from .registry import find_adapter, has_namesake, is_composite, unreviewed_reason
from .report import ConversionReport

FilterFn = Callable[[nn.Module, str], bool]


@dataclass(frozen=True)
class Request:
    """The arguments of :func:`precondition_` that decide about a module."""

    config: PreconditionConfig
    include: tuple[AttentionKind, ...]
    filter_fn: FilterFn | None = None


@dataclass(frozen=True)
class PlannedModule:
    """An attention module, its adapter, and its entry in the report."""

    module: nn.Module
    adapter: Adapter | None
    entry: ConversionEntry

    @property
    def is_chosen(self) -> bool:
        """Whether it is converted."""
        return self.adapter is not None and self.entry.status == "converted"


def plan_conversion(
    model: nn.Module,
    config: PreconditionConfig | None = None,
    *,
    include: Include = DEFAULT_INCLUDE,
    example_inputs: object = None,
) -> ConversionReport:
    """The report that :func:`precondition_` would return for these arguments; ``model`` is not changed."""
    request = Request(PreconditionConfig() if config is None else config, check_include(include))
    return report_of(model, plan_modules(model, request, example_inputs))


def report_of(model: nn.Module, planned: list[PlannedModule]) -> ConversionReport:
    """The report about ``planned`` modules of ``model``."""
    return ConversionReport(tuple(one.entry for one in planned), weakref.ref(model))


def convertible_attention(model: nn.Module) -> list[tuple[str, nn.Module, Adapter]]:
    """``(path, module, adapter)`` of every attention that can be converted, of whatever kind."""
    planned = _known_by_class(model, Request(PreconditionConfig(), KINDS))
    return [(one.entry.path, one.module, one.adapter) for one in planned if one.adapter and one.is_chosen]


def plan_modules(model: nn.Module, request: Request, example_inputs: object) -> list[PlannedModule]:
    """The attention modules, in the model's order: found by their classes and, given inputs, in a run of the model."""
    planned = list(_known_by_class(model, request))
    if example_inputs is None:
        return planned
    seen = detect_in_run(model, *call_arguments(example_inputs))
    for path, reason in unlisted_attention(model, seen, [one.entry for one in planned]).items():
        planned.append(_unknown(path, model.get_submodule(path), reason))
    order = {path: number for number, (path, _) in enumerate(model.named_modules())}
    return sorted(planned, key=lambda one: order[one.entry.path])


def _known_by_class(model: nn.Module, request: Request) -> Iterator[PlannedModule]:
    """Attention that has an adapter, and attention that is recognized by the code of its class."""
    parts: set[str] = set()
    for path, module in model.named_modules():
        if path in parts:
            continue
        adapter = find_adapter(module)
        if adapter is not None:
            parts.update(f"{path}.{part}" if path else part for part in adapter.parts)
            yield _known(path, module, adapter, request)
        elif not is_composite(module) and ((unread := unreviewed_reason(module)) or computes_attention(module)):
            yield _unknown(path, module, _why_unknown(module, unread))


def _why_unknown(module: nn.Module, unread: str | None) -> str:
    if has_namesake(module):
        return "an adapter is registered for another class of this name; build the model anew, or register it"
    return unknown_reason(type(module), unread)


def _unknown(path: str, module: nn.Module, reason: str) -> PlannedModule:
    return PlannedModule(module, None, _entry(path, module, None, HeadShape(None, None), "unknown", reason))


def _known(path: str, module: nn.Module, adapter: Adapter, request: Request) -> PlannedModule:
    shape = adapter.shape(module)
    status: Status = "converted"
    reason = adapter.definition
    if request.filter_fn is not None and not request.filter_fn(module, path):
        status, reason = "skipped", "left out by filter_fn"
    elif unsupported := unknown_forward_reason(module) or adapter.unsupported_reason(module):
        status, reason = "unsupported", unsupported
    elif adapter.kind not in request.include:
        included = (*request.include, adapter.kind)
        status, reason = "skipped", f"{adapter.kind} is not included; include={included!r} converts it"
    elif unsupported := _unfit_options(adapter, shape, request.config):
        status, reason = "unsupported", unsupported
    return PlannedModule(module, adapter, _entry(path, module, adapter, shape, status, reason))


def _unfit_options(adapter: Adapter, shape: HeadShape, config: PreconditionConfig) -> str | None:
    """Why a module cannot be converted with these options, or None."""
    if config.backend not in ROW_BACKENDS and not adapter.honors_backend:
        return f"backend={config.backend!r} computes attention, and this class computes its own and has its rows scaled"
    if config.gain is not None and shape.num_heads is None:
        return "a gain per head needs the number of heads, and the module does not say it"
    if shape.head_dim == 1:
        return "rows of one entry: equilibrated, only their sign is left"
    return None


def _entry(
    path: str, module: nn.Module, adapter: Adapter | None, shape: HeadShape, status: Status, reason: str
) -> ConversionEntry:
    return ConversionEntry(
        path=path,
        class_name=class_name(type(module)),
        mechanism=adapter.mechanism if adapter else None,
        num_heads=shape.num_heads,
        head_dim=shape.head_dim,
        status=status,
        reason=reason,
    )
