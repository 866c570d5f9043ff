"""The check of marks before `torch.distributed.checkpoint` loads.

It writes what it reads into the tensors of a state dict, for the names that the state dict has, and asks no module. A
plain model would take the weights of a preconditioned one without a word, and with ``allow_partial_load`` the reverse.
So `DefaultLoadPlanner`, which plans every load, is wrapped: it compares the marks among the names and shapes of the
checkpoint with those of the state dict.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Size

from .mark import Mark, read_shape

_PLANNERS = "torch.distributed.checkpoint.default_planner"
_MARK = "preconditioner.requires_preconditioned_attention"
_GAIN = "preconditioner.gain"


def watch_load_planner() -> None:
    """Wrap `DefaultLoadPlanner.create_local_plan`, once, if `torch.distributed.checkpoint` has been imported."""
    planners = sys.modules.get(_PLANNERS)
    planner = getattr(planners, "DefaultLoadPlanner", None)
    if planner is None or hasattr(planner.create_local_plan, "checks_marks"):
        return
    plan = planner.create_local_plan

    @functools.wraps(plan)
    def create_local_plan(self: Any) -> Any:
        # A state dict that is made from the checkpoint itself has whatever names were asked for.
        if self.metadata is not None and not isinstance(self, planners._EmptyStateDictLoadPlanner):  # type: ignore[union-attr]
            check_marks(_sizes(self.state_dict), _sizes(self.metadata.state_dict_metadata), self.allow_partial_load)
        return plan(self)

    create_local_plan.checks_marks = True  # type: ignore[attr-defined]
    planner.create_local_plan = create_local_plan


def check_marks(own: Mapping[str, Size | None], saved: Mapping[str, Size | None], partial: bool) -> None:
    """Compare the marks in a state dict with those in a checkpoint, both given by names and sizes.

    Args:
        own: of the state dict that is to be loaded.
        saved: of the checkpoint.
        partial: whether names may be missing in the checkpoint: a mark on one side only then warns.

    Raises:
        ValueError: an attention has a mark or a gain on one side only, or marks of different options.
    """
    marks = {key for key in (*own, *saved) if key.endswith(_MARK) and key.removesuffix(_MARK)[-1:] in ("", ".")}
    loaded = _loaded_attentions(own.keys() & saved.keys(), {key.removesuffix(_MARK) for key in marks})
    for key in sorted(marks):
        attention = key.removesuffix(_MARK)
        if key in own and key in saved:
            _check_alike(key, own[key], saved[key])
            _check_gain(f"{attention}{_GAIN}", own, saved, partial)
        elif attention in loaded:
            _report_mark(key in own, key, partial)


def _sizes(entries: Mapping[str, Any]) -> dict[str, Size | None]:
    """Names and sizes, of tensors or of what `torch.distributed.checkpoint` keeps of them."""
    return {key: getattr(value, "shape", getattr(value, "size", None)) for key, value in entries.items()}


def _loaded_attentions(keys: set[str], attentions: set[str]) -> set[str]:
    """Those of ``attentions``, which are prefixes of names, of which a tensor other than the mark is loaded."""
    return {prefix for key in keys if not key.endswith(_MARK) for prefix in _prefixes(key)} & attentions


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join([*parts[:length], ""]) for length in range(len(parts)))


def _check_alike(key: str, own: Size | None, saved: Size | None) -> None:
    if own == saved or own is None:
        return
    if saved == Size([3]):
        raise ValueError(
            f"{key}: the checkpoint's mark is of the form of three integers, which this loader cannot place; load it "
            "with load_state_dict (torch.distributed.checkpoint.format_utils.dcp_to_torch_save writes a file for it) "
            "and save it again"
        )
    try:
        said = read_shape(Size() if saved is None else saved)
    except ValueError as error:
        raise ValueError(f"{key}: {error}; load it with the version that wrote it") from error
    raise ValueError(f"{key}: the checkpoint was trained with {_options(said)} and the model was converted with others")


def _options(mark: Mark) -> str:
    return f"PreconditionConfig(gradient={mark.gradient!r}, placement={mark.placement!r})"


def _check_gain(key: str, own: Mapping[str, object], saved: Mapping[str, object], partial: bool) -> None:
    if (key in own) != (key in saved):
        has, not_in, options = ("checkpoint", "model", "gain=1.0") if key in saved else ("model", "checkpoint", "")
        fix = f"convert with PreconditionConfig({options})"
        _report(f"{key}: the {has} has a gain of this attention and the {not_in} has none; {fix}", partial)


def _report_mark(model_has_it: bool, key: str, partial: bool) -> None:
    trained, has, fix = (
        ("plain", "is preconditioned", "call restore_(model)")
        if model_has_it
        else ("preconditioned", "has no mark there", "call precondition_(model)")
    )
    said = f"{key}: this attention was trained {trained}, and the model that it is loaded into {has}"
    _report(f"{said}; {fix} before its state dict is taken", partial)


def _report(message: str, partial: bool) -> None:
    if not partial:
        raise ValueError(f"{message}, or pass planner=DefaultLoadPlanner(allow_partial_load=True) if you mean it")
    warnings.warn(message, stacklevel=2)
