"""Run-time detection: which modules compute attention in a run of the model.

A dispatch mode sees every ATen operator of the run (`softmax_flow` defines what counts), below autograd functions,
scripted code and composite functions; compiled functions run eagerly. A module is named if it is the innermost one of
the model in whose call both the softmax and the product happen, or the operator that fuses the two.

Not detected: attention without a softmax (linear attention by feature maps other than exponentials, sparsemax,
sigmoids), and kernels of other packages that are not registered with PyTorch as operators.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..entry import ConversionEntry
from ..registry import is_composite
from .softmax_flow import SoftmaxFlow

_FUSED = re.compile(r"attention|attn|transformer_encoder_layer|natten", re.IGNORECASE)


def detect_in_run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    through: Callable[..., object] | None = None,
) -> dict[str, str]:
    """Path -> what was seen, of every module of ``model`` that computes attention in a run.

    The model is called once, without gradients and in the mode (train or eval) that it is in. Afterwards its buffers
    and the random state are what they were, bit for bit; other attributes that a forward pass sets are not reset.

    Args:
        model: whose modules are named.
        args, kwargs: what it is called with.
        through: what to call instead of the model, such as a wrapper of it.
    """
    mode = _Watching(model)
    try:
        with _restored_state(model), _eager_operators(), torch.no_grad(), mode:
            (model if through is None else through)(*args, **kwargs)
    except Exception as error:
        error.add_note("This was raised while the model ran to show which of its modules compute attention.")
        raise
    return mode.seen


def call_arguments(example_inputs: object) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """``example_inputs`` as positional and keyword arguments.

    Raises:
        TypeError: it is no tensor, tuple or list, nor a mapping from names.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, Mapping) and all(isinstance(name, str) for name in example_inputs):
        return (), example_inputs
    raise TypeError(
        "example_inputs must be a tensor, a tuple of positional arguments or a mapping of keyword arguments; got "
        f"{type(example_inputs).__name__}; wrap a single input of another type in a tuple"
    )


def unlisted_attention(model: nn.Module, seen: Mapping[str, str], entries: Sequence[ConversionEntry]) -> dict[str, str]:
    """Those of ``seen`` that are in none of the listed modules and not registered as composites."""
    listed = [entry.path for entry in entries]
    return {
        path: f"no adapter knows this class, and it computes attention: when the model ran, {what} was seen in it"
        for path, what in seen.items()
        if not any(_inside(path, other) for other in listed) and not is_composite(model.get_submodule(path))
    }


def _inside(path: str, other: str) -> bool:
    return not other or path == other or path.startswith(f"{other}.")


class _Watching(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._flow = SoftmaxFlow([*model.parameters(), *model.buffers()], self._running)
        self.seen: dict[str, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        schema = getattr(func, "_schema", None)
        name = schema.name.partition("::")[2] if schema else func.__name__
        if _FUSED.search(name):
            self._note(self._running(), name)
        plain = name if name.startswith("_") else name.rstrip("_")
        reached = self._flow.follow(plain, args, kwargs, out, writes=bool(schema and schema.is_mutable))
        if reached is not None:
            self._note(_shared(reached.where, self._running()), f"a softmax whose result reaches {reached.operator}")
        return out

    def _note(self, where: tuple[str, ...], what: str) -> None:
        if where:  # else it happened outside the model, in its caller
            self.seen.setdefault(where[-1], what)

    def _running(self) -> tuple[str, ...]:
        """The modules of the model whose methods are running, outermost first."""
        frame: FrameType | None = sys._getframe(1)
        paths: list[str] = []
        while frame is not None:
            path = self._paths.get(id(_first_argument(frame)))
            if path is not None and paths[-1:] != [path]:
                paths.append(path)
            frame = frame.f_back
        return tuple(reversed(paths))


def _first_argument(frame: FrameType) -> object:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _shared(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """The common beginning of both."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return tuple(path for path, _ in same)


@contextmanager
def _eager_operators() -> Iterator[None]:
    """Run compiled functions eagerly, and PyTorch's transformer layers without their fast path."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _restored_state(model: nn.Module) -> Iterator[None]:
    """Restore buffers and random states at the end."""
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpys = numpy.random.get_state() if numpy else None
    try:
        with _fork_of_generators():
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpys)
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            _restore(buffer, before)


@contextmanager
def _fork_of_generators() -> Iterator[None]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = accelerator.type if accelerator else "cuda"
    devices = range(torch.accelerator.device_count()) if accelerator else ()
    with torch.random.fork_rng(devices, device_type=kind):
        yield


def _restore(buffer: Tensor, before: Tensor) -> None:
    if not (buffer.is_meta or torch.equal(buffer, before)):  # expanded tensors cannot be written to
        with torch.no_grad():
            buffer.copy_(before)
