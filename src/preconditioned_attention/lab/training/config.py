"""``TrainConfig``: the configuration of one training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..._checks import check_integer, check_known, check_number, naming_source
from ..._yaml import format_yaml, parse_yaml
from ...config import check_choice
from ...diagnostics import MonitorConfig
from ..tasks import OptimizerSettings
from .arms import Arm
from .former_options import update_options

Precision = Literal["float32", "float64", "bfloat16", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

# Limits that no run reaches: what is beyond them is a slip, which would end in a loop without end or in a million
# processes.
MOST_STEPS = 10**9
MOST_WORKERS = 256
LARGEST_LEARNING_RATE = 1e4


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes, except the number of processes and the device.

    Args:
        task: a name in :data:`preconditioned_attention.lab.tasks.TASKS`.
        task_options: options of that task.
        precondition: what the model is converted with; None trains it as it is.
        seed: decides the initial weights, the order of the batches and everything random in the steps.
        steps: optimizer steps.
        batch_size: examples per optimizer step, over all processes and accumulated micro-batches together.
        batch_ramp_steps: the batch grows linearly to that size over this many steps, in as many micro-batches.
        learning_rate: AdamW's learning rate after warm-up.
        weight_decay: AdamW's decoupled weight decay; parameters with fewer than two axes are left out.
        betas: decay rates of AdamW's two averages.
        eps: what Adam adds to its denominator; None: the optimizer's default, 1e-8 for AdamW.
        warmup_steps: the learning rate grows linearly over this many steps.
        final_learning_rate: where the cosine ends, and the least that ``milestones`` leave.
        milestones: steps after which the learning rate is a tenth of what it was; they replace the cosine.
        clip_norm: the norm that the whole gradient is clipped to, or None.
        accumulation_steps: micro-batches per optimizer step.
        precision: ``"float32"`` and ``"float64"`` are the type of weights and inputs; ``"bfloat16"`` and
            ``"float16"`` keep float32 weights and compute in automatic mixed precision.
        ema_decay: decay of an exponential moving average of the weights, or None. With one, the averaged weights
            are those that are evaluated and returned.
        evaluate_every: steps between evaluations on the validation split; None evaluates at the end only.
        checkpoint_every: steps between checkpoints; None writes one at the end only.
        keep_checkpoints: the newest so many are kept.
        keep_best: test and return the weights whose evaluation on the validation split had the best metric, the
            earliest of equals, instead of those of the last step.
        workers: processes that load examples ahead; 0 loads them in the process that trains. It changes no number.
        monitor: what is recorded of the model's attention every ``monitor.every`` optimizer steps from the first on;
            None: nothing. It changes no number that is trained.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    task: str
    task_options: dict[str, Any] = field(default_factory=dict)
    precondition: Arm | None = None
    seed: int = 0
    steps: int
    batch_size: int
    batch_ramp_steps: int = 0
    learning_rate: float
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    warmup_steps: int = 0
    final_learning_rate: float = 0.0
    milestones: tuple[int, ...] = ()
    clip_norm: float | None = None
    accumulation_steps: int = 1
    precision: Precision = "float32"
    ema_decay: float | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    keep_best: bool = False
    workers: int = 0
    monitor: MonitorConfig | None = None

    def __post_init__(self) -> None:
        self._check_task()
        self._check_counts()
        self._check_numbers()
        check_choice("precision", self.precision, PRECISIONS)
        if not isinstance(self.keep_best, bool):
            raise TypeError(f"keep_best must be true or false; got {self.keep_best!r}")

    def _check_task(self) -> None:
        if not isinstance(self.task, str):
            raise TypeError(f"task must be the name of a task; got {self.task!r}")
        if not isinstance(self.task_options, Mapping):
            raise TypeError(f"task_options must be a mapping of the task's options; got {self.task_options!r}")
        if self.precondition is not None and not isinstance(self.precondition, Arm):
            raise TypeError(f"precondition must be an Arm or None; got {self.precondition!r}")
        if self.monitor is not None and not isinstance(self.monitor, MonitorConfig):
            raise TypeError(f"monitor must be a MonitorConfig or None; got {self.monitor!r}")
        object.__setattr__(self, "task_options", dict(self.task_options))

    def _check_counts(self) -> None:
        check_integer("seed", self.seed, minimum=0)
        check_integer("workers", self.workers, minimum=0, maximum=MOST_WORKERS)
        check_integer("batch_ramp_steps", self.batch_ramp_steps, minimum=0, maximum=MOST_STEPS)
        for name in ("steps", "batch_size", "accumulation_steps", "keep_checkpoints"):
            check_integer(name, getattr(self, name), minimum=1, maximum=MOST_STEPS)
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        if check_integer("warmup_steps", self.warmup_steps, minimum=0) >= self.steps:
            raise ValueError(
                f"warmup_steps must be less than steps, or the learning rate is never reached; got "
                f"warmup_steps={self.warmup_steps}, steps={self.steps} (with_steps() scales both)"
            )
        if not isinstance(self.milestones, list | tuple):
            raise TypeError(f"milestones must be a list of steps; got {self.milestones!r}")
        milestones = sorted(check_integer("milestones", step, minimum=1) for step in self.milestones)
        object.__setattr__(self, "milestones", tuple(milestones))

    def _check_numbers(self) -> None:
        if not isinstance(self.betas, list | tuple) or len(self.betas) != 2:
            raise TypeError(f"betas must be two numbers; got {self.betas!r}")
        numbers = {
            "learning_rate": check_number(
                "learning_rate", self.learning_rate, above=0.0, maximum=LARGEST_LEARNING_RATE
            ),
            "weight_decay": check_number("weight_decay", self.weight_decay),
            "betas": tuple(check_number("betas", beta, below=1.0) for beta in self.betas),
            "final_learning_rate": check_number("final_learning_rate", self.final_learning_rate),
        }
        if self.eps is not None:
            numbers["eps"] = check_number("eps", self.eps, above=0.0)
        if self.clip_norm is not None:
            numbers["clip_norm"] = check_number("clip_norm", self.clip_norm, above=0.0)
        if self.ema_decay is not None:
            numbers["ema_decay"] = check_number("ema_decay", self.ema_decay, below=1.0)
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate must not be more than learning_rate; got {self.final_learning_rate!r} and "
                f"{self.learning_rate!r}"
            )
        for name, value in numbers.items():  # an integer in a file means the float: configurations compare by value
            object.__setattr__(self, name, value)

    @property
    def optimizer_settings(self) -> OptimizerSettings:
        """The options that a task's optimizer and schedule take."""
        fields = dataclasses.fields(OptimizerSettings)
        return OptimizerSettings(**{field.name: getattr(self, field.name) for field in fields})

    def with_steps(self, steps: int) -> TrainConfig:
        """The same run at another length; warm-up, ramp and intervals scale."""
        check_integer("steps", steps, minimum=1)

        def scaled(interval: int | None) -> int | None:
            return None if interval is None else max(1, interval * steps // self.steps)

        return dataclasses.replace(
            self,
            steps=steps,
            warmup_steps=self.warmup_steps * steps // self.steps,
            batch_ramp_steps=self.batch_ramp_steps * steps // self.steps,
            milestones=tuple(max(1, milestone * steps // self.steps) for milestone in self.milestones),
            evaluate_every=scaled(self.evaluate_every),
            checkpoint_every=scaled(self.checkpoint_every),
            monitor=self.monitor and dataclasses.replace(self.monitor, every=scaled(self.monitor.every)),
        )

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, ready for JSON or YAML."""
        lists = {"betas": list(self.betas), "milestones": list(self.milestones)}
        return {**dataclasses.asdict(self), **lists, "precondition": self.precondition and self.precondition.to_dict()}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; options left out keep their defaults. Reads what earlier versions saved.

        Raises:
            ValueError, TypeError: an option is unknown, missing, or has a value it cannot have.
        """
        fields = dataclasses.fields(cls)
        check_known("training option", options, [field.name for field in fields])
        without_default = (
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        missing = [name for name in without_default if name not in options]
        if missing:
            raise ValueError(f"training option(s) missing: {', '.join(missing)}")
        values = update_options(options)
        if isinstance(values.get("precondition"), Mapping):
            with naming_source("precondition"):
                values["precondition"] = Arm.from_dict(values["precondition"])
        if isinstance(values.get("monitor"), Mapping):
            with naming_source("monitor"):
                values["monitor"] = MonitorConfig.from_dict(values["monitor"])
        return cls(**values)

    def to_yaml(self) -> str:
        """The options as YAML text."""
        return format_yaml(self.to_dict())

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "the training configuration") -> TrainConfig:
        """The inverse of :meth:`to_yaml`; ``source`` names the text in errors.

        Raises:
            ValueError, TypeError: as :func:`parse_yaml` and :meth:`from_dict`; the message names ``source``.
        """
        with naming_source(source):
            return cls.from_dict(parse_yaml(text, source=source))
