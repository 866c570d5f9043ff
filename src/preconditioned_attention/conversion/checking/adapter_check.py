"""`check_adapter`: checks on a model that its adapters apply `C` to the outputs of attention heads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...config import PreconditionConfig
from ...equilibration import default_eps, row_norms
from ...layers import Preconditioner
from ...layers.observation import OutputObserver, RowObserver, observed
from ...selection import DEFAULT_INCLUDE, Include
from ..attachment import is_preconditioned, preconditioner_of
from ..convert import precondition_, restore_
from ..detection.runtime import call_arguments
from ..entry import ConversionEntry
from ..guards.call_guard import guard, unguard
from ..plan import plan_conversion
from ..verify import VerificationError, verify
from .products import Product, heads_of_attention, watch_products
from .results import AdapterCheck, CheckedAttention
from .row_matching import Match, match_rows, same_numbers, tolerance
from .substitutes import PassThrough, ScaledValues, powers_of_two, with_class

_UNSEEN = (
    "that its rows are attention's, and that the scale of a head's values does not matter (no product of attention "
    "weights with values was seen: a kernel that PyTorch does not know, or weights without a softmax)"
)
_DEFINED = "that its rows are attention's, and that the scale of a head's values does not matter (its rows are {})"
_ZERO = "anything about its rows, which are all zero for these inputs"
_ALIKE = "that tokens are kept apart: they are all alike for these inputs (let them be random, or the model float64)"
_NOT_FINITE = "that gradients are finite (some of the plain model's are not)"
_NO_GRADIENT = "that gradients are finite (no output of the model has one)"


def check_adapter(
    model: nn.Module,
    inputs: Any,
    config: PreconditionConfig | None = None,
    *,
    include: Include = DEFAULT_INCLUDE,
) -> AdapterCheck:
    """Convert a copy of ``model``, run it on ``inputs``, and check what its adapters do.

    1. With `C` replaced by the identity, the converted model computes what the plain one does, and the rows that `C` is
       given are rows of a product of attention weights with values: one token in one head each.
    2. Every preconditioner is called. Each row that it returns is the row that it was given, divided by its norm (times
       the gain): tokens and heads are not mixed.
    3. Scaling each row of a head's output by a power of two changes nothing. With a wrong head width it would.
    4. The gradients of all parameters are finite.
    5. `restore_` restores outputs and state dict bit for bit.

    The copy is run in evaluation mode, about ten times; ``model`` is not changed.

    Args:
        model: a plain model that holds the attention, or is it.
        inputs: a tensor, a tuple of positional or a mapping of keyword arguments. They should be random: equal rows
            cannot be distinguished.
        config: the options to convert with.
        include: the kinds of attention to convert, as :func:`precondition_` takes them.

    Returns:
        What was checked, and for each module what could not be: attention inside a kernel that is not a PyTorch
        operator is not seen. Attention that is not converted is listed too.

    Raises:
        VerificationError: a check failed; the message says what, where, and what to correct.
        TypeError: ``inputs`` is something else.
        ValueError: nothing in ``model`` is converted, it is converted already, or it cannot be copied.

    Example:
        >>> import torch
        >>> import preconditioned_attention as pa
        >>> from preconditioned_attention.conversion import check_adapter
        >>> class MyAttention(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.qkv, self.proj = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
        ...
        ...     def forward(self, x):
        ...         q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        ...         rows = torch.softmax(q @ k.mT, dim=-1) @ v
        ...         return self.proj(rows.transpose(1, 2).flatten(2))
        >>> adapter = pa.register_prehook(MyAttention, hook_target="proj", num_heads=4)
        >>> check_adapter(MyAttention(), torch.randn(2, 5, 16)).complete
        True
        >>> adapter = pa.register_prehook(MyAttention, hook_target="proj", num_heads=8)
        >>> check_adapter(MyAttention(), torch.randn(2, 5, 16))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        preconditioned_attention.conversion.verify.VerificationError: ...they are 2 wide, and attention's heads 4...
    """
    if is_preconditioned(model):
        raise ValueError("model is preconditioned already; check_adapter takes it plain: call restore_(model) first")
    return _Check(model, inputs, PreconditionConfig() if config is None else config, include).result()


class _Check:
    def __init__(self, model: nn.Module, inputs: Any, config: PreconditionConfig, include: Include) -> None:
        self.config, self.include = config, include
        self.args, self.kwargs = call_arguments(inputs)
        try:
            self.model = copy.deepcopy(model)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"check_adapter works on a copy, and this model cannot be copied: {error}") from error
        self.model.eval()  # a statement of its own: `train` of some models returns None
        self.seen = plan_conversion(self.model, config, include=include, example_inputs=inputs)
        self.entries = {entry.path: entry for entry in self.seen.converted}

    def result(self) -> AdapterCheck:
        before, hooks = {key: value.clone() for key, value in self.model.state_dict().items()}, self._hooks()
        plain = self._run()
        with watch_products(self._sites()) as products:
            self._run(gradients=True)  # without gradients PyTorch's modules take fused fast paths
        not_finite = self._not_finite()
        if not plain:
            raise ValueError("the model returns no floating-point tensor, alone or in tuples, lists or dictionaries")
        if not all(bool(out.isfinite().all()) for out in plain):
            raise VerificationError("the plain model's output is not finite for these inputs; give it others")
        precondition_(self.model, self.config, include=self.include)
        rows = self._check_rows(plain, products)
        converted = self._check_what_leaves()
        verify(self._sites(), self.model, self.args, self.kwargs)
        self._check_scaling(rows, *converted)
        self._check_gradients(not_finite)
        restore_(self.model)
        self._check_restored(before, hooks, plain)
        checked = tuple(self._checked(e, rows[e.path], not_finite) for e in self.entries.values())
        return AdapterCheck(checked, self.seen.left_out)

    def _run(self, gradients: bool = False) -> list[Tensor]:
        """The floating-point outputs of the model, each time from the same random state."""
        devices = {p.device for p in self.model.parameters() if p.is_cuda}
        with torch.random.fork_rng(list(devices)), torch.set_grad_enabled(gradients):
            torch.manual_seed(0)
            return _floats(self.model(*self.args, **self.kwargs))

    def _sites(self) -> dict[str, nn.Module]:
        return {path: self.model.get_submodule(path) for path in self.entries}

    def _preconditioners(self) -> dict[str, Preconditioner]:
        return {path: preconditioner_of(module) for path, module in self._sites().items()}

    def _hooks(self) -> list[tuple[type, int, int]]:
        return [(type(m), len(m._forward_pre_hooks), len(m._forward_hooks)) for m in self.model.modules()]

    def _fail(self, path: str, what: str) -> VerificationError:
        entry = self.entries[path]
        return VerificationError(f"{path or 'the model itself'} ({entry.class_name.rpartition('.')[2]}): {what}")

    def _check_rows(self, plain: list[Tensor], products: dict[str, list[Product]]) -> dict[str, _Rows]:
        """Replace `C` by the identity, and match the rows that it is given with products of the plain model."""
        for module in self._sites().values():
            unguard(module)  # the identity records no calls
        with with_class(self._preconditioners(), PassThrough) as opened, watch_products(self._sites()) as again:
            out = self._run()
        for path, module in self._sites().items():
            guard(module, opened[path])
        if not _alike(out, plain):
            raise VerificationError(
                "with C taken out, the converted model does not compute what the plain one does; a forward of your "
                "own, or how the rows are put back, differs from the original"
            )
        rows = {}
        for path, c in opened.items():
            if not c.arrived:
                raise self._fail(path, "the attachment did not fire: this input does not reach it, or a path goes past")
            candidates, certain = heads_of_attention(products[path])
            match = match_rows(c.arrived, candidates, self.entries[path].num_heads)
            self._check_match(path, c.arrived, candidates, match, certain)
            converted, _ = heads_of_attention(again[path])
            rows[path] = _Rows(match, match_rows(c.arrived, converted, None), c.attended)
        return rows

    def _check_match(
        self, path: str, arrived: list[Tensor], products: dict[int, Product], match: Match, certain: bool
    ) -> None:
        width = arrived[0].shape[-1]
        same = match.found == match.looked_at or same_numbers(arrived, products)
        if match.found < match.looked_at and (certain or same) and not self.entries[path].reason:
            widths = sorted({p.out.shape[-1] for p in products.values()})
            missing = f"{match.looked_at - match.found} of the {match.looked_at} rows that reach the preconditioner"
            if not same:
                reason = "something (a gate, a norm, an added term) comes between, or it is not attention's output; "
                fix = "attach to the first module that sees the heads' outputs alone, and give width if others follow"
            elif width not in widths:
                reason = f"they are {width} wide, and attention's heads {' or '.join(map(str, widths))}; "
                fix = "correct num_heads or head_dim"
            else:
                reason, fix = "they mix heads or tokens; ", "correct form, interleaved, num_heads or head_dim"
            raise self._fail(path, f"{missing} are not rows of what attention computes: {reason}{fix}")
        if match.labeled is False:
            raise self._fail(
                path,
                f"what the preconditioner takes for one of {self.entries[path].num_heads} heads are rows of several, "
                "so a gain per head would be wrong; correct form, or attach where the heads are not mixed yet",
            )

    def _check_what_leaves(self) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
        """Compare what each preconditioner returns with what it is given; return its and the model's outputs."""
        left: dict[str, list[Tensor]] = {path: [] for path in self.entries}
        wrong: list[str] = []

        def compare(rows: Tensor, out: Tensor, path: str, gain: Tensor | None) -> None:
            left[path].append(out.detach().clone())
            norms = row_norms(rows.detach())[..., None]
            expected = rows.detach() / norms if gain is None else gain.detach().view(-1, 1, 1) * rows.detach() / norms
            eps = default_eps(rows.dtype) if self.config.eps is None else self.config.eps
            error = torch.where(norms > eps, (out.detach() - expected).abs(), 0.0)
            if error.numel() and not error.max() <= tolerance(rows.dtype):
                wrong.append(path)

        with ExitStack() as stack:
            for path, c in self._preconditioners().items():
                see = RowObserver(partial(compare, path=path, gain=c.gain))
                stack.enter_context(observed(c, see))
            out = self._run()
        for path in wrong:
            raise self._fail(path, "a row that leaves the preconditioner is not the row that came, divided by its norm")
        return left, out

    def _check_scaling(
        self, rows: dict[str, _Rows], converted: dict[str, list[Tensor]], converted_out: list[Tensor]
    ) -> None:
        """Scale every row of every head by a power of two, right after the product that computes it."""
        scaled = {path for path, entry in self.entries.items() if rows[path].match.proven and not entry.reason}
        seen = {path: c for path, c in self._preconditioners().items() if path in scaled and rows[path].attended}
        left: dict[str, list[Tensor]] = {path: [] for path in self.entries}
        observers = [
            observed(c, OutputObserver(partial(_keep, left[path]))) for path, c in self._preconditioners().items()
        ]
        sites = {path: module for path, module in self._sites().items() if path in scaled - seen.keys()}
        with ExitStack() as stack, with_class(seen, ScaledValues), watch_products(sites, partial(_scaled, rows)):
            for observer in observers:
                stack.enter_context(observer)
            out = self._run()
        for path, tensors in converted.items():
            if not _alike(left[path], tensors):
                raise self._fail(
                    path,
                    "scaling the values of one head changes what leaves the preconditioner, so its rows are not those "
                    "of single heads, or a term is added before it; correct num_heads, head_dim or form, or the point",
                )
        if not _alike(out, converted_out):
            raise VerificationError(
                "scaling the values of one head changes the model's output though not what leaves the preconditioner: "
                "attention's output also takes a way that goes past it"
            )

    def _not_finite(self) -> list[str] | None:
        """The parameters whose gradients are not finite; None if no output has a gradient."""
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        outputs = [out for out in self._run(gradients=True) if out.requires_grad]
        if not outputs or not parameters:
            return None
        seeds = [2 * out.detach() for out in outputs]  # those of the sum of squares
        gradients = torch.autograd.grad(outputs, list(parameters.values()), seeds, allow_unused=True)
        return [n for n, g in zip(parameters, gradients, strict=True) if g is not None and not g.isfinite().all()]

    def _check_gradients(self, plain: list[str] | None) -> None:
        """Check that gradients are finite where those of the plain model are."""
        wrong = [name for name in self._not_finite() or [] if name not in (plain or [])]
        if wrong:
            raise VerificationError(f"the gradient of {wrong[0]!r} (and {len(wrong) - 1} more) is not finite")

    def _check_restored(
        self, before: dict[str, Tensor], hooks: list[tuple[type, int, int]], plain: list[Tensor]
    ) -> None:
        after = self.model.state_dict()
        same = after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
        if not same or self._hooks() != hooks:
            raise VerificationError("restore_ does not bring classes, hooks and state dict back; correct `detach`")
        out = self._run()
        if not (len(out) == len(plain) and all(torch.equal(a, b) for a, b in zip(out, plain, strict=True))):
            raise VerificationError(
                "after restore_ the outputs are not bit for bit what they were; correct `detach`, or the model "
                "remembers earlier calls"
            )

    def _checked(self, entry: ConversionEntry, rows: _Rows, not_finite: list[str] | None) -> CheckedAttention:
        match = rows.match
        reasons = {
            _UNSEEN: bool(match.looked_at and not (match.proven or entry.reason)),
            _DEFINED.format(entry.reason): bool(match.looked_at and entry.reason),
            _ZERO: not match.looked_at,
            _ALIKE: bool(match.looked_at and match.alike),
            _NO_GRADIENT: not_finite is None,
            _NOT_FINITE: bool(not_finite),
        }
        same = {name: getattr(entry, name) for name in ("path", "class_name", "mechanism", "num_heads", "head_dim")}
        return CheckedAttention(rows=match.seen, unproven=tuple(r for r, holds in reasons.items() if holds), **same)


@dataclass(frozen=True)
class _Rows:
    """The rows that a preconditioner was given, matched with products of the plain and of the converted model."""

    match: Match
    converted: Match
    attended: bool


def _scaled(rows: Mapping[str, _Rows], path: str, index: int, out: Tensor) -> Tensor:
    """``out`` with each row scaled, if the preconditioner is given its rows."""
    axis = rows[path].converted.axes.get(index)
    if axis is None:
        return out
    shape = list(out.shape)
    shape[axis] = 1
    return out * powers_of_two(tuple(shape), out)


def _keep(kept: list[Tensor], out: Tensor) -> None:
    kept.append(out.detach().clone())  # it may be changed in place later


def _floats(output: object) -> list[Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]


def _alike(left: list[Tensor], right: list[Tensor]) -> bool:
    """Whether two runs agree up to rounding."""
    return [x.shape for x in left] == [x.shape for x in right] and all(
        bool((a - b).abs().max() <= tolerance(b.dtype) * b.abs().max())
        for a, b in zip(left, right, strict=True)
        if b.numel()
    )
