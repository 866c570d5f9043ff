"""`Preconditioner`: `C` as a module, with its options, its gain, and the mark that it leaves in a checkpoint."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._symbolic import NO_SCRIPT, one_node
from ..config import ROW_BACKENDS, PreconditionConfig
from ..functional import preconditioned_attention
from ..ops.rows.autograd import equilibrate
from .call_record import CallRecord, record_traced_call
from .mark import Mark, is_current, make_mark, read_mark
from .observation import AttentionArguments, Observer

_MARKER = "requires_preconditioned_attention"


class Preconditioner(nn.Module):
    """Applies `C` to the rows of every head's output: a child of each preconditioned attention.

    Its one buffer marks a checkpoint. A plain model has no such buffer, so a strict load of a preconditioned checkpoint
    raises an error with the buffer's name, which therefore says what is required. Loading a plain checkpoint into a
    preconditioned model warns. :mod:`.mark` defines the form of the buffer.

    Args:
        config: the method's options.
        num_heads: how many heads; needed if ``config.gain`` is set.
        marker: whether the mark is part of the state dict.
        device, dtype: of the gain and of the mark.

    Raises:
        ValueError: a gain without a number of heads.
    """

    gain: nn.Parameter | None
    origin: Literal["conversion", "layer", "probe"] = "conversion"
    """Who added it: a conversion, the constructor of a layer of this package, or the condition monitor."""

    def __init__(
        self,
        config: PreconditionConfig,
        *,
        num_heads: int | None = None,
        marker: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.observers: tuple[Observer, ...] = ()
        self.calls: CallRecord | None = None  # set by the guard of a converted attention
        self.register_buffer(_MARKER, make_mark(self.says(), device=device, dtype=dtype) if marker else None)
        if config.gain is None:
            self.register_parameter("gain", None)
        elif num_heads is None:
            raise ValueError("num_heads must be given when config.gain is set: the gain is one value per head")
        else:
            self.gain = nn.Parameter(torch.full((num_heads,), config.gain, device=device, dtype=dtype))

    @one_node
    def forward(self, rows: Tensor) -> Tensor:
        """`C A` for ``rows`` `A` of shape ``(..., H, N, d)``: same shape and dtype out.

        Raises:
            ValueError: ``config.backend`` computes attention, and the rows are computed already.
        """
        self._record_call()
        if self.config.backend not in ROW_BACKENDS:
            raise ValueError(
                f"backend={self.config.backend!r} computes attention, and this module computed its own and has only "
                "its rows scaled (as it does for attention weights, score biases, or without a fused kernel); use "
                "backend='auto' or 'composition'"
            )
        out = equilibrate(rows, gradient=self.config.gradient, eps=self.config.eps, gain=self.gain)
        for observer in self.observers:
            observer.after(rows, out)
        return out

    @one_node
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`C Attn(q, k, v)` by :func:`preconditioned_attention.preconditioned_attention`, with this module's options.

        Raises:
            RuntimeError: the gain is on the meta device, and no hook of Accelerate loads it.
        """
        if self.gain is not None and self.gain.is_meta and not q.is_meta:
            hook = self._offloading_hook()
            hook.pre_forward(self)
            try:
                return self.attend(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)
            finally:
                hook.post_forward(self, None)
        self._record_call()
        if self.observers:
            arguments = AttentionArguments(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)
            for observer in self.observers:
                observer.before(arguments)
        out = preconditioned_attention(
            q,
            k,
            v,
            attn_mask,
            dropout_p,
            is_causal,
            scale,
            enable_gqa,
            gradient=self.config.gradient,
            gain=self.gain,
            eps=self.config.eps,
            backend=self.config.backend,
        )
        for observer in self.observers:
            observer.after(None, out)
        return out

    def _record_call(self) -> None:
        if torch.compiler.is_dynamo_compiling():
            record_traced_call()
        elif self.calls is not None:
            self.calls.add()

    def _offloading_hook(self) -> Any:
        """Accelerate's hook, which brings the gain in for a call of the module; a call of `attend` does not run it."""
        hook = getattr(self, "_hf_hook", None)
        if hook is None:
            raise RuntimeError(
                "the gain of this preconditioner is on the meta device, so it was never loaded: load the weights with "
                "load_state_dict(..., assign=True), or call to_empty(device=...) and reset_parameters()"
            )
        return hook

    def __prepare_scriptable__(self) -> None:
        """Called by `torch.jit.script`, which cannot compile this module."""
        raise RuntimeError(NO_SCRIPT)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"gradient={self.config.gradient!r}, gain={self.config.gain}, eps={self.config.eps}"

    def reset_parameters(self) -> None:
        """Reset the gain to its initial value, as after `to_empty`."""
        with torch.no_grad():
            for tensor, value in ((self.gain, self.config.gain), (self._buffers[_MARKER], 1.0)):
                if tensor is not None and value is not None:
                    tensor.fill_(value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("calls", None)
        self.observers = ()  # a copy is not observed
        own = self._buffers[_MARKER]
        if own is not None and not is_current(own):  # pickled while the mark was three integers
            self.renew_mark(keep=_MARKER not in self._non_persistent_buffers_set)

    @property
    def marked(self) -> bool:
        """Whether the mark is part of the state dict."""
        return self._buffers[_MARKER] is not None

    def renew_mark(self, *, keep: bool = True) -> None:
        """Replace a mark of an older form by one of the present form on the same device, or by none."""
        own = self.get_buffer(_MARKER)
        self.register_buffer(_MARKER, make_mark(self.says(), device=own.device) if keep else None)

    def says(self) -> Mark:
        """The content of the mark."""
        return Mark(self.config.gradient, self.config.placement)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own, loaded = self._buffers[_MARKER], state_dict.pop(prefix + _MARKER, None)
        if loaded is not None:
            error_msgs.extend(_mismatches(self.says(), loaded, prefix))
        elif own is not None:
            _warn_of_a_plain_checkpoint()
        if own is not None:
            state_dict[prefix + _MARKER] = _to_load(own, loaded)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _warn_of_a_plain_checkpoint() -> None:
    warnings.warn(
        "this checkpoint does not say that it was trained with preconditioned attention, and the model is "
        "preconditioned: it computes another function than the one that was trained. Train it further, or call "
        "restore_(model) to run the checkpoint as it was",
        stacklevel=3,
    )


def _to_load(own: Tensor, loaded: Tensor | None) -> Tensor:
    """The tensor to load as the mark: a mark that does not match is reported by :func:`_mismatches`, never loaded."""
    if loaded is not None and loaded.shape == own.shape:
        return loaded
    if not own.is_meta:
        return own
    return torch.ones_like(own, device="cpu" if loaded is None else loaded.device)


def _mismatches(own: Mark, loaded: Tensor, prefix: str) -> list[str]:
    """Errors for a checkpoint's mark that does not match; another gradient only warns (same outputs)."""
    where = prefix.removesuffix(".")
    try:
        said = read_mark(loaded)
    except ValueError as error:
        return [f"{where}: {error}"]
    if said.placement != own.placement:
        return [
            f"{where}: the checkpoint was trained with placement={said.placement!r} and the model has "
            f"{own.placement!r}; convert with PreconditionConfig(placement={said.placement!r})"
        ]
    if said.gradient != own.gradient:
        warnings.warn(
            f"this checkpoint was trained with gradient={said.gradient!r} and the model has {own.gradient!r}: outputs "
            "are the same, further training is not",
            stacklevel=2,
        )
    return []
