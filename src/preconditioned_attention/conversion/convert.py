"""`precondition_` and `restore_`: converting a model in place, and undoing it."""

from __future__ import annotations

from torch import nn

from ..config import PreconditionConfig
from ..layers import Preconditioner
from ..selection import DEFAULT_INCLUDE, Include, check_include
from .attachment import adapter_of, attach_all, detach, make_preconditioner, preconditioned_modules
from .guards.compile_cache import mark_holders, unmark_holders
from .guards.compiled_models import check_not_compiled
from .guards.dynamic_class import changed_class_reason
from .guards.first_pass import unwatch_first_pass, watch_first_pass
from .guards.instance_forward import kept_forward_reason
from .guards.wrapped_models import check_gain_is_included
from .plan import FilterFn, PlannedModule, Request, plan_modules, report_of
from .report import ConversionReport


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
    the optimizer is built, because it adds parameters.

    Args:
        model: any module that holds attention modules, or is one.
        config: the method's options; None is the paper's method.
        include: the kinds of attention to convert, or ``"all"``: ``"softmax"``; ``"class_attention"``, whose only query
            is the class token (CaiT, XCiT), so that its one row has condition number 1 by definition; ``"pooling"``
            (latent or class queries that pool the tokens); ``"channel"``, attention over channels with rows of tokens
            (XCiT's cross-covariance, DaViT's channel groups); ``"linear"`` attention that has an output per head.
        filter_fn: called as ``filter_fn(module, path)`` for every attention that has an adapter; False skips it.
        strict: raise, before anything is changed, if attention would be left out that ``include`` and ``filter_fn`` do
            not leave out. Without ``example_inputs`` it finds modules that have an adapter, and modules whose code
            names an attention function, or a softmax and a matrix product.
        marker: add a small buffer to every converted attention, so that a preconditioned checkpoint does not load
            silently into a plain model. False leaves the keys of the state dict as they are.
        example_inputs: what the model can be called with: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. The model is run on it once, and every module that computes attention in that run and
            has no adapter is listed as unknown, whatever its code looks like.

    Returns:
        What was converted, what was not, and why.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: there is nothing to convert (the message lists what was seen), the model is converted or compiled
            already, it is wrapped and ``config`` has a gain, or ``strict`` found an attention left out. The model is
            as it was.
    """
    config = PreconditionConfig() if config is None else config
    _check_arguments(model, config, filter_fn)
    planned = plan_modules(model, Request(config, check_include(include), filter_fn), example_inputs)
    report = report_of(model, planned)
    chosen = [one for one in planned if one.is_chosen]
    _check_not_converted(chosen)
    _check_plan(report, chosen, config, strict)
    targets = [(one.module, one.adapter) for one in chosen if one.adapter]
    attach_all(targets, make_preconditioner(config, marker=marker))
    mark_holders(model, [one.entry.path for one in chosen])
    watch_first_pass(model, [(one.entry.path, one.module) for one in chosen if one.module is not model])
    return report


def restore_(model: nn.Module) -> int:
    """Undo :func:`precondition_`: outputs and state dict are bit for bit what they would be without it.

    Returns:
        How many modules were restored.

    Raises:
        ValueError: nothing in ``model`` is preconditioned, it was compiled after the conversion, or a class cannot be
            swapped back: another tool has changed it since, or a forward that was bound to the instance since calls
            the converted one. The model is as it was.
    """
    check_not_compiled(model)
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
    """Raise, before anything is changed, where a class cannot be swapped back."""
    for path, module in converted:
        adapter = adapter_of(module)
        if adapter is not None and adapter.mechanism == "class swap":
            reason = changed_class_reason(module) or kept_forward_reason(module)
            if reason is not None:
                raise ValueError(f"cannot restore {path!r}: {reason}")


def _check_arguments(model: object, config: object, filter_fn: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if not isinstance(config, PreconditionConfig):
        raise TypeError(f"config must be a PreconditionConfig; got {config!r}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be a function of (module, path); got {filter_fn!r}")
    check_not_compiled(model)
    if config.gain is not None:
        check_gain_is_included(model)


def _check_not_converted(chosen: list[PlannedModule]) -> None:
    twice = [
        one.entry.path for one in chosen if isinstance(getattr(one.module, "preconditioner", None), Preconditioner)
    ]
    if twice:
        raise ValueError(
            f"already preconditioned: {', '.join(map(repr, twice))}. Call restore_(model) first to convert with other "
            "options, or leave these modules out with filter_fn"
        )


def _check_plan(
    report: ConversionReport, chosen: list[PlannedModule], config: PreconditionConfig, strict: bool
) -> None:
    """Raise, before anything is changed, where the plan is not what was asked for."""
    if not chosen:
        seen = f"what was seen:\n{report}" if report.entries else "no module of it seems to compute attention"
        raise ValueError(
            f"nothing to convert in this model; {seen}\n"
            "Make the class that computes attention known (register_prehook, register_adapter), or change include"
        )
    if strict and report.left_out:
        raise ValueError(f"strict=True, and some attention would be left out; nothing was changed.\n{report}")
    if config.placement != "pre_skip" and not any(one.adapter and one.adapter.value_skip for one in chosen):
        raise ValueError(
            f"placement={config.placement!r} concerns attention that adds a skip to its output, and none of the "
            f"{len(chosen)} modules to convert does; leave placement at 'pre_skip'"
        )
