"""`ConditionMonitor`: records condition numbers of every head's output while a model runs."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from .._compiler import break_graph_at
from ..conversion.adapter import Adapter
from ..conversion.attachment import attach_all, detach, preconditioned_modules
from ..conversion.guards.compiled_models import check_not_compiled
from ..conversion.plan import convertible_attention
from .monitor_config import MonitorConfig
from .monitor_file import RecordFile, process_path
from .monitor_probe import LayerObserver, make_probe
from .monitor_records import Observation, Record, measure, summarize


class ConditionMonitor:
    """Records kappa and the spread of row norms of `A` and of `C A`, per layer and head, and related measures.

    Works on preconditioned models, where `C` is what the model applies, and on plain ones, where `C` is what the
    method would apply. Inside ``with`` it records the passes that run there; between :meth:`attach` and :meth:`close`
    some of the passes in training mode. Passes that are not recorded run the model's own code, the fused operators
    included. In a recorded pass of a preconditioned model `A` is computed once more, separately: outputs, gradients and
    random states are bit for bit the same. In one of a plain model the adapters' forwards replace the model's; they
    compute the same up to rounding. Afterwards nothing of the monitor is left in the model.

    The softmax matrix, and with it the entropy, is available where an adapter passes on queries and keys; elsewhere the
    records say why not.

    Args:
        model: a model with attention that an adapter supports; of a distributed wrapper, the model inside. Compiled
            models are refused: compiled code does not run what is attached later.
        every, samples, heads, tokens, seed: what is recorded; see :class:`MonitorConfig`.
        jacobian: also record the condition number of the Jacobian of each attention layer's output with respect to
            its input, for the first sample of the batch, without dropout. Dense, so for small inputs only: see
            :data:`~preconditioned_attention.diagnostics.monitor_jacobian.JACOBIAN_LIMIT`.
        on_observation: called with the :class:`Observation` of every recorded call, which holds the matrices; a list's
            ``append`` keeps them all.
        path: a CSV file to write every record to; with several processes each writes its own, and
            :func:`merge_records` joins them. It must not exist.

    Attributes:
        records: a :class:`Record` per matrix, in the order in which they were seen.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; on entering and attaching also: no such attention,
            a compiled model, a monitor that is attached already.
        FileExistsError: ``path`` exists.

    Example:
        >>> with ConditionMonitor(model) as monitor:
        ...     model(images)
        >>> monitor.summary()[0]["kappa_before"]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int | None = None,
        samples: int | None = None,
        heads: int | None = None,
        tokens: int | None = None,
        seed: int = 0,
        jacobian: bool = False,
        on_observation: Callable[[Observation], object] | None = None,
        path: Path | str | None = None,
    ) -> None:
        self.model = model
        self.config = MonitorConfig(every=every, samples=samples, heads=heads, tokens=tokens, seed=seed)
        self.jacobian = jacobian
        self.on_observation = on_observation
        self.path = None if path is None else Path(path)
        self.records: list[Record] = []
        self._file: RecordFile | None = None
        self._step = 1
        self._driven = False
        self._recorded_step = 0
        self._passes = 0
        self._training_only = False
        self._layers: list[str] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._open: list[LayerObserver] = []
        self._probed: list[nn.Module] = []

    @property
    def step(self) -> int:
        """The step number in the records, from 1. Once the caller sets it, at most one pass per step is recorded."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step, self._driven = step, True

    def attach(self) -> ConditionMonitor:
        """Record, from now on until :meth:`close`, passes of the model in training mode."""
        self._begin(training_only=True)
        self.config = self.config.for_run()
        return self

    def close(self) -> None:
        """Stop recording; the model is as it was. Closing twice is not an error."""
        if self._training_only and self._handles and not (self._passes or self._driven):
            warnings.warn(
                "the monitor was attached and saw no forward pass in training mode: call the model itself (not a part "
                "of it, nor compiled code made before), or use the monitor as a context manager",
                stacklevel=2,
            )
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._stop_recording()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> ConditionMonitor:
        self._begin(training_only=False)
        if self.config.every in (None, 1):
            self._start_recording()  # at once, so that parts of the model may be called on their own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self) -> list[Record]:
        """The records so far, which are removed from :attr:`records`."""
        taken, self.records = self.records, []
        return taken

    def is_due(self) -> bool:
        """Whether a pass at this step is, or was, to be recorded."""
        return (self._step - 1) % (self.config.every or 1) == 0

    def summary(self) -> list[dict[str, str | int | float]]:
        """Per layer, in the model's order: medians over all that was recorded, and over how many matrices.

        Raises:
            ValueError: the model was not run inside the monitor.
        """
        by_layer: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            by_layer[record.layer].append(record)
        silent = [path for path in self._layers if path not in by_layer]
        if silent or not self._layers:
            raise ValueError(f"no attention was seen at {silent or 'any layer'}: run the model inside the monitor")
        return [summarize(path, by_layer[path]) for path in self._layers]

    def _begin(self, *, training_only: bool) -> None:
        if self._handles:
            raise ValueError("this monitor is attached already; close() it first")
        check_not_compiled(self.model)
        sites = [path for path, _, _ in self._plain_sites()] + [path for path, _ in preconditioned_modules(self.model)]
        if not sites:
            raise ValueError("the model has no attention that can be observed; see precondition_ for what is supported")
        self._layers = [path for path, _ in self.model.named_modules() if path in set(sites)]
        if self.path is not None:
            self._file = RecordFile(self._new_file(self.path))
        self._training_only = training_only
        before = self.model.register_forward_pre_hook(self._before_pass)
        self._handles = [before, self.model.register_forward_hook(self._after_pass, always_call=True)]

    @staticmethod
    def _new_file(path: Path) -> Path:
        own = process_path(path, *_process())
        if own.exists():
            raise FileExistsError(f"path: {own} exists; remove it or choose another name, nothing is overwritten")
        return own

    def _plain_sites(self) -> list[tuple[str, nn.Module, Adapter]]:
        sites = convertible_attention(self.model)
        return [site for site in sites if not hasattr(site[1], "preconditioner")]

    def _before_pass(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():
            _refuse_tracing()
        if self._training_only and not model.training:
            return
        self._passes += 1
        if not self._open and self.is_due() and self._step != self._recorded_step:
            self._start_recording()

    def _after_pass(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._training_only and not model.training:
            return
        if self._training_only or self.config.every not in (None, 1):
            self._stop_recording()
        if not self._driven:
            self._step += 1

    def _start_recording(self) -> None:
        check_not_compiled(self.model)
        self._recorded_step = self._step
        plain = self._plain_sites()
        attach_all([(module, adapter) for _, module, adapter in plain], make_probe)
        self._probed = [module for _, module, _ in plain]
        process, _ = _process()
        for path, module in preconditioned_modules(self.model):
            self._open.append(
                LayerObserver(
                    path,
                    module,
                    config=self.config,
                    jacobian=self.jacobian,
                    step=lambda: self._step,
                    process=process,
                    emit=self._keep,
                )
            )

    def _keep(self, seen: Observation) -> None:
        records = measure(seen)
        self.records.extend(records)
        if self.on_observation is not None:
            self.on_observation(seen)
        if self._file is not None:
            self._file.add(records)

    def _stop_recording(self) -> None:
        for observer in self._open:
            observer.close()
        for module in self._probed:
            detach(module)
        self._open, self._probed = [], []


_COMPILED = (
    "the condition monitor is attached to a model that is being compiled: compiled code would go on without it, or be "
    "compiled anew at every recorded pass. close() the monitor, or run the model without torch.compile"
)


def _refuse_tracing() -> None:
    raise ValueError(_COMPILED)


break_graph_at(_refuse_tracing, reason=_COMPILED)  # the trace ends at the call, and the error reaches the caller


def _process() -> tuple[int, int]:
    """This process's number and how many there are."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
