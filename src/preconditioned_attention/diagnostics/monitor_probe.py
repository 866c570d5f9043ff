"""What the monitor attaches to a model: probes in plain layers, and an observer per layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PreconditionConfig
from ..conversion.adapter import Adapter, HeadShape
from ..conversion.attachment import preconditioner_of
from ..conversion.registry import find_adapter
from ..layers import Preconditioner
from ..layers.observation import AttentionArguments, attach_observer, detach_observer
from ..ops.rows.autograd import equilibrate
from .monitor_config import MonitorConfig
from .monitor_jacobian import jacobian_kappa
from .monitor_records import Observation, softmax_weights


class Probe(Preconditioner):
    """Passes `A` and what `C A` would be to its observers, and returns `A`: the model's output is unchanged."""

    origin = "probe"

    def forward(self, rows: Tensor) -> Tensor:
        """``rows``, unchanged."""
        self._record_call()
        with torch.no_grad():
            for observer in self.observers:
                observer.after(rows, equilibrate(rows.detach()))
        return rows

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """`Attn(q, k, v)`, as the plain model computes it."""
        arguments = AttentionArguments(*args, **kwargs)
        for observer in self.observers:
            observer.before(arguments)
        return self(arguments.attend())


def make_probe(module: nn.Module, shape: HeadShape) -> Preconditioner:
    """A probe for a layer of a plain model; it leaves no key in the state dict."""
    return Probe(PreconditionConfig(), marker=False)


class LayerObserver:
    """Makes observations of the rows that one layer's preconditioner passes to its observers.

    Args:
        path: the layer's name.
        module: the attention.
        config: which samples, heads and tokens are recorded.
        jacobian: whether the layer's Jacobian is computed too.
        step: returns the present step.
        process: this process's number.
        emit: called with every observation.
    """

    def __init__(
        self,
        path: str,
        module: nn.Module,
        *,
        config: MonitorConfig,
        jacobian: bool,
        step: Callable[[], int],
        process: int,
        emit: Callable[[Observation], None],
    ) -> None:
        preconditioner = preconditioner_of(module)
        self._path, self._module, self._preconditioner = path, module, preconditioner
        self._config, self._step, self._process, self._emit = config, step, process, emit
        self._handle = module.register_forward_pre_hook(self._look_at_input, with_kwargs=True) if jacobian else None
        self._arguments: AttentionArguments | None = None
        self._rows: Tensor | None = None
        self._kappa_jacobian = math.nan
        self._busy = False
        self._place = (0, 0)  # the step and the call in it
        attach_observer(preconditioner, self)

    def close(self) -> None:
        """Remove the observers and the hook."""
        detach_observer(self._preconditioner, self)
        if self._handle is not None:
            self._handle.remove()

    def before(self, arguments: AttentionArguments) -> None:
        """Keep queries and keys, and compute `A`; a probe computes that itself."""
        self._arguments = None if self._busy else arguments
        self._rows = None if self._busy or isinstance(self._preconditioner, Probe) else arguments.compute_rows()

    @torch.no_grad()
    def after(self, rows: Tensor | None, out: Tensor) -> None:
        """Emit an observation of `A` and `C A`."""
        if self._busy:
            return
        arguments, self._arguments = self._arguments, None
        before, self._rows = self._rows if rows is None else rows, None
        assert before is not None, "`attend` calls `before` first"
        step = self._step()
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 0)
        with torch.autocast(before.device.type, enabled=False):
            self._emit(self._observation(before.detach(), out.detach(), arguments))

    def _observation(self, before: Tensor, after: Tensor, arguments: AttentionArguments | None) -> Observation:
        rows = before.reshape(-1, *before.shape[-3:])  # (B, H, N, d), whatever B is made of
        samples = self._config.draw(f"{self._path} samples", rows.shape[0], self._config.samples)
        heads = self._config.draw(f"{self._path} heads", rows.shape[1], self._config.heads)
        tokens = self._config.draw(f"{self._path} tokens", rows.shape[2], self._config.tokens)
        pick = torch.meshgrid(samples, heads, tokens, indexing="ij")
        return Observation(
            step=self._place[0],
            process=self._process,
            layer=self._path,
            call=self._place[1],
            samples=samples,
            heads=heads,
            before=rows[pick].cpu(),
            after=after.reshape(rows.shape)[pick].cpu(),
            weights=None if arguments is None else softmax_weights(arguments, samples, heads, tokens),
            not_available="" if arguments is not None else self._why_no_weights(),
            kappa_jacobian=self._kappa_jacobian,
        )

    def _why_no_weights(self) -> str:
        adapter: Adapter | None = find_adapter(self._module)
        if adapter is not None and adapter.kind in ("channel", "linear"):
            return f"{adapter.kind} attention has no softmax matrix over tokens"
        how = "unknown" if adapter is None else adapter.mechanism
        return f"this mechanism ({how}), or this call, passes on the heads' outputs and neither queries nor keys"

    def _look_at_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            self._kappa_jacobian = jacobian_kappa(module, args, kwargs, sample=0, name=self._path)
        finally:
            self._busy = False
