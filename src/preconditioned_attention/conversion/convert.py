"""`precondition_` and `restore_`: a model that exists, converted in place and brought back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..config import ROW_BACKENDS, PreconditionConfig
from ..layers import Preconditioner
from ..selection import DEFAULT_INCLUDE, KINDS, AttentionKind, Include, check_include
from .detection.runtime import call_arguments, detect_in_run, unlisted_attention
from .detection.static import computes_attention
from .guards.call_guard import guard, unguard
from .guards.compile_cache import mark_holders, unmark_holders
from .guards.dynamic_class import changed_class_reason, unknown_reason
from .guards.first_pass import unwatch_first_pass, watch_first_pass
from .guards.instance_forward import (
    instance_forwards,
    is_compiled,
    kept_forward_reason,
    rebind_forwards,
    unknown_forward_reason,
)
from .registry import Adapter, HeadShape, class_name, find_adapter, has_namesake, is_composite, unread_reason
from .report import ConversionEntry, ConversionReport, Status

FilterFn = Callable[[nn.Module, str], bool]

# Who converted what: another adapter may have been registered since. A copy's is looked up.
_converted_by: weakref.WeakKeyDictionary[nn.Module, Adapter] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class _Site:
    """An attention module, what is to happen to it, and by whom."""

    module: nn.Module
    adapter: Adapter | None
    entry: ConversionEntry


def precondition_(
    model: nn.Module,
    config: PreconditionConfig | None = None,
    *,
    include: Include = DEFAULT_INCLUDE,
    filter_fn: FilterFn | None = None,
    strict: bool = False,
    marker: bool = True,
    example_inputs: object = None,
) -> ConversionReport:
    """Make every attention of ``model`` a preconditioned one, in place.

    Not function-preserving: the model computes another function afterwards, and a checkpoint belongs to the form it
    was trained in. Call it before `torch.compile` and before a distributed wrapper; with ``config.gain`` also before
    the optimiser is built, for it adds parameters.

    Args:
        model: any module that holds attention modules, or is one.
        config: the method's options; None is the paper's method.
        include: the kinds of attention to convert, or ``"all"``: ``"softmax"``; ``"class_attention"``, whose only query
            is the class token (CaiT, XCiT), so that its one row has condition number 1 by definition; ``"pooling"``
            (latent or class queries that pool the tokens); ``"channel"``, attention over channels with rows of tokens
            (XCiT's cross-covariance, DaViT's channel groups); ``"linear"`` attention that has an output per head.
        filter_fn: called as ``filter_fn(module, path)`` for every known attention; where it is False, that is skipped.
        strict: raise, before anything is changed, if an attention would be left out that nobody asked to leave out.
            Without ``example_inputs`` it sees modules that an adapter knows, and others whose code, as far as it can
            be read, names an attention function or takes a softmax and a product.
        marker: add a small buffer to every converted attention, so that a preconditioned checkpoint does not load
            silently into a plain model. False leaves the keys of the state dict as they are.
        example_inputs: what the model can be called with: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. The model runs on it once, see :func:`observe`, and every module that computes
            attention then and that nothing here knows is listed as unknown, whatever its code looks like.

    Returns:
        What was converted, what was not, and why.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: there is nothing to convert (the message lists what was seen), the model is converted or compiled
            already, or ``strict`` found an attention left out. The model is as it was.
    """
    config = PreconditionConfig() if config is None else config
    _check_arguments(model, config, filter_fn)
    sites = _all_sites(model, config, check_include(include), filter_fn, example_inputs)
    report = ConversionReport(tuple(site.entry for site in sites), weakref.ref(model))
    _check_plan(report, sites, config, strict)
    chosen = [site for site in sites if site.entry.status == "converted"]
    attach_all([(site.module, site.adapter) for site in chosen if site.adapter], _factory(config, marker))
    mark_holders(model, [site.entry.path for site in chosen])
    watch_first_pass(model, [(site.entry.path, site.module) for site in chosen if site.module is not model])
    return report


def plan_conversion(
    model: nn.Module,
    config: PreconditionConfig | None = None,
    *,
    include: Include = DEFAULT_INCLUDE,
    example_inputs: object = None,
) -> ConversionReport:
    """What :func:`precondition_` would do to ``model``: its report, and nothing changed."""
    config = PreconditionConfig() if config is None else config
    sites = _all_sites(model, config, check_include(include), None, example_inputs)
    return ConversionReport(tuple(site.entry for site in sites), weakref.ref(model))


def restore_(model: nn.Module) -> int:
    """Undo :func:`precondition_`: outputs and state dict are bit for bit what they would be without it.

    Returns:
        How many modules were restored.

    Raises:
        ValueError: nothing in ``model`` is preconditioned, it was compiled after the conversion, or a class cannot be
            swapped back, because another tool has changed it since, or a forward that was bound to the instance since
            would go on running what is taken away. The model is as it was.
    """
    refuse_compiled(model)
    converted = list(preconditioned_modules(model))
    if not converted:
        raise ValueError("nothing to restore: no module of this model is preconditioned")
    _check_swaps(converted)
    unwatch_first_pass(model)
    unmark_holders(model, [path for path, _ in converted])
    for _, module in converted:
        detach(module)
    return len(converted)


def _check_swaps(converted: list[tuple[str, nn.Module]]) -> None:
    """Refuse, before anything is changed, where a class cannot be swapped back."""
    for path, module in converted:
        adapter = _converted_by.get(module) or find_adapter(module)
        if adapter is not None and adapter.mechanism == "class swap":
            reason = changed_class_reason(module) or kept_forward_reason(module)
            if reason is not None:
                raise ValueError(f"cannot restore {path!r}: {reason}")


def is_preconditioned(model: nn.Module) -> bool:
    """Whether any module of ``model`` is preconditioned."""
    return next(preconditioned_modules(model), None) is not None


def preconditioned_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``(path, module)`` of every attention that has a preconditioner."""
    for path, module in model.named_modules():
        # not by attribute: wrappers hand on those of the module inside
        if isinstance(module._modules.get("preconditioner"), Preconditioner):
            yield path, module


def attention_sites(model: nn.Module) -> list[tuple[str, nn.Module, Adapter]]:
    """``(path, module, adapter)`` of every attention that can be converted."""
    sites = _sites(model, PreconditionConfig(), KINDS, None)
    return [(s.entry.path, s.module, s.adapter) for s in sites if s.adapter and s.entry.status == "converted"]


def attach_all(
    targets: list[tuple[nn.Module, Adapter]], make: Callable[[nn.Module, HeadShape], Preconditioner]
) -> None:
    """Give every module the preconditioner that ``make`` builds for it: all of them, or none if one fails."""
    done: list[nn.Module] = []
    try:
        for module, adapter in targets:
            preconditioner = make(module, adapter.shape(module))
            preconditioner.train(module.training)
            module.add_module("preconditioner", preconditioner)
            done.append(module)
            _converted_by[module] = adapter
            plain = type(module)
            adapter.attach(module, preconditioner)
            rebind_forwards(module, plain)
            guard(module, preconditioner)
    except BaseException:
        for module in done:
            detach(module)
        raise


def detach(module: nn.Module) -> None:
    """Take one module's preconditioner away."""
    adapter = _converted_by.get(module) or find_adapter(module)
    if adapter is None:
        raise ValueError(
            f"{class_name(type(module))} was converted by an adapter that is not registered here; import the module "
            "that registers it, then restore"
        )
    unguard(module)
    converted = type(module)
    adapter.detach(module)
    rebind_forwards(module, converted)
    _converted_by.pop(module, None)
    del module.preconditioner


def _factory(config: PreconditionConfig, marker: bool) -> Callable[[nn.Module, HeadShape], Preconditioner]:
    def make(module: nn.Module, shape: HeadShape) -> Preconditioner:
        like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        return Preconditioner(config, num_heads=shape.num_heads, marker=marker, device=like.device, dtype=like.dtype)

    return make


def _check_arguments(model: object, config: object, filter_fn: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if not isinstance(config, PreconditionConfig):
        raise TypeError(f"config must be a PreconditionConfig; got {config!r}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be a function of (module, path); got {filter_fn!r}")
    refuse_compiled(model)


def refuse_compiled(model: nn.Module) -> None:
    """Raise if a part of ``model`` is compiled: compiled code would go on as before."""
    for path, module in model.named_modules():
        where = f"its submodule {path!r}" if path else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"the model cannot be changed in place: {where} is a TorchScript module; convert, then torch.jit.trace"
            )
        if isinstance(module, torch.fx.GraphModule) and _attends(module):
            raise ValueError(
                f"the model cannot be changed in place: {where} is a graph, of torch.fx or torch.export, in which "
                "attention is a node and no module; call precondition_ or restore_ first, then trace or export"
            )
        if _is_compiled(module):
            raise ValueError(
                f"the model cannot be changed in place: {where} is compiled, and compiled code does not see the "
                "change; call precondition_ or restore_ first, then torch.compile"
            )


def _attends(graph: torch.fx.GraphModule) -> bool:
    """Whether nodes of ``graph`` attend, or call a preconditioner that has lost its attention module."""
    modules = dict(graph.named_modules())
    return any(
        "scaled_dot_product" in getattr(node.target, "__name__", str(node.target))
        or isinstance(modules.get(node.target), Preconditioner)
        for node in graph.graph.nodes
    )


def _all_sites(
    model: nn.Module,
    config: PreconditionConfig,
    include: tuple[AttentionKind, ...],
    filter_fn: FilterFn | None,
    example_inputs: object,
) -> list[_Site]:
    """What the classes tell and, where there are inputs, what a run shows besides; in the model's order."""
    sites = list(_sites(model, config, include, filter_fn))
    if example_inputs is None:
        return sites
    seen = unlisted_attention(
        model, detect_in_run(model, *call_arguments(example_inputs)), [site.entry for site in sites]
    )
    for path, reason in seen.items():
        module = model.get_submodule(path)
        sites.append(_Site(module, None, _entry(path, module, None, HeadShape(None, None), "unknown", reason)))
    order = {path: number for number, (path, _) in enumerate(model.named_modules())}
    return sorted(sites, key=lambda site: order[site.entry.path])


def _is_compiled(module: nn.Module) -> bool:
    whole = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    return whole or any(is_compiled(forward) for forward in instance_forwards(module))


def _sites(
    model: nn.Module, config: PreconditionConfig, include: tuple[AttentionKind, ...], filter_fn: FilterFn | None
) -> Iterator[_Site]:
    """Every attention in the model, with the decision about it."""
    parts: set[str] = set()
    for path, module in model.named_modules():
        if path in parts:
            continue
        adapter = find_adapter(module)
        if adapter is not None:
            parts.update(f"{path}.{part}" if path else part for part in adapter.parts)
            yield _known_site(path, module, adapter, config, include, filter_fn)
        elif not is_composite(module) and ((unread := unread_reason(module)) or computes_attention(module)):
            reason = unknown_reason(type(module), unread)
            if has_namesake(module):
                reason = "an adapter is registered for another class of this name; build the model anew, or register it"
            yield _Site(module, None, _entry(path, module, None, HeadShape(None, None), "unknown", reason))


def _known_site(
    path: str,
    module: nn.Module,
    adapter: Adapter,
    config: PreconditionConfig,
    include: tuple[AttentionKind, ...],
    filter_fn: FilterFn | None,
) -> _Site:
    shape = adapter.shape(module)
    refusal = unknown_forward_reason(module) or adapter.unsupported_reason(module)
    status: Status
    if filter_fn is not None and not filter_fn(module, path):
        status, reason = "skipped", "left out by filter_fn"
    elif refusal is not None:
        status, reason = "unsupported", refusal
    elif adapter.kind not in include:
        status, reason = "skipped", f"{adapter.kind} is not included; include={(*include, adapter.kind)!r} converts it"
    elif config.backend not in ROW_BACKENDS and not adapter.honors_backend:
        status = "unsupported"
        reason = f"backend={config.backend!r} computes attention, and this class keeps its own and has its rows scaled"
    elif config.gain is not None and shape.num_heads is None:
        status, reason = "unsupported", "a gain per head needs the number of heads, and the module does not tell it"
    elif shape.head_dim == 1:
        status, reason = "unsupported", "rows of one entry: equilibrated, only their sign is left"
    else:
        status, reason = "converted", adapter.definition
    return _Site(module, adapter, _entry(path, module, adapter, shape, status, reason))


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


def _check_plan(report: ConversionReport, sites: list[_Site], config: PreconditionConfig, strict: bool) -> None:
    """Refuse before anything is changed."""
    chosen = [site for site in sites if site.entry.status == "converted"]
    twice = [
        site.entry.path for site in chosen if isinstance(getattr(site.module, "preconditioner", None), Preconditioner)
    ]
    if twice:
        raise ValueError(
            f"already preconditioned: {', '.join(map(repr, twice))}. Call restore_(model) first to convert with other "
            "options, or leave these modules out with filter_fn"
        )
    if not chosen:
        seen = f"what was seen:\n{report}" if report.entries else "no module of it seems to compute attention"
        raise ValueError(
            f"nothing to convert in this model; {seen}\n"
            "Make the class that computes attention known (register_prehook, register_adapter), or change include"
        )
    if strict and report.left_out:
        raise ValueError(f"strict=True, and some attention would be left out; nothing was changed.\n{report}")
    if config.placement != "pre_skip" and not any(site.adapter and site.adapter.value_skip for site in chosen):
        raise ValueError(
            f"placement={config.placement!r} concerns attention that adds a skip to its output, and none of the "
            f"{len(chosen)} modules to convert does; leave placement at 'pre_skip'"
        )
