"""`Preconditioner`: `C` as a module, with its options, its gain, and the mark that it leaves in a checkpoint."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._symbolic import NO_SCRIPT, one_node
from ..config import ROW_BACKENDS, PreconditionConfig
from ..functional import preconditioned_attention
from ..ops.inputs import PLAIN
from ..ops.rows.autograd import equilibrate
from .call_record import CallRecord, record_traced_call
from .distributed_gain import gain_of_heads
from .load_planner import watch_load_planner
from .mark import Mark, is_current, make_mark, read_mark, value_of
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
        watch_load_planner()
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
        gain = None if self.gain is None else gain_of_heads(self.gain, rows)
        out = equilibrate(rows, gradient=self.config.gradient, eps=self.config.eps, gain=gain)
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
            gain=None if self.gain is None else gain_of_heads(self.gain, q),
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
            for tensor, value in ((self.gain, self.config.gain), (self._buffers[_MARKER], value_of(self.says()))):
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

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        watch_load_planner()  # the state dict may be the one to load into
        super()._save_to_state_dict(destination, prefix, keep_vars)

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
        if own is not None and loaded is None:
            _warn_of_a_plain_checkpoint()
        elif loaded is not None and loaded is not own:
            error_msgs.extend(_mismatches(self.says(), loaded, prefix + _MARKER))
            if type(self.gain) is nn.Parameter and state_dict.get(f"{prefix}gain") is self.gain:  # also filled in
                warnings.warn(f"{prefix}gain: the checkpoint has no gain here; convert with gain=None", stacklevel=2)
        if own is not None:
            state_dict[prefix + _MARKER] = self._mark_to_load(own, loaded)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _mark_to_load(self, own: Tensor, loaded: object) -> Tensor:
        """This module's own mark, where the checkpoint's is: that one is compared, and never kept."""
        if type(own) not in PLAIN:
            return own
        like = loaded if isinstance(loaded, Tensor) and type(loaded) in PLAIN and not loaded.is_meta else own
        dtype = like.dtype if like.is_floating_point() else own.dtype
        return make_mark(self.says(), device="cpu" if like.is_meta else like.device, dtype=dtype)


def drop_completed_mark(attention: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """A hook on an attention, before it loads: its own mark in ``state_dict`` does not speak for a checkpoint.

    `set_model_state_dict` completes a checkpoint, or the part of one that a file holds, with the parameters and buffers
    of the model; those that are distributed it fills. So the mark is left out if no other parameter is the model's own.
    """
    own, key = attention.get_submodule("preconditioner")._buffers[_MARKER], f"{prefix}preconditioner.{_MARKER}"
    if own is None or state_dict.get(key) is not own:
        return
    inside = f"{prefix}preconditioner."
    others = (x for name, x in state_dict.items() if name.startswith(prefix) and not name.startswith(inside))
    if all(type(x) is not nn.Parameter for x in others):
        del state_dict[key]


def _warn_of_a_plain_checkpoint() -> None:
    warnings.warn(
        "this checkpoint does not say that it was trained with preconditioned attention, and the model is "
        "preconditioned: it computes another function than the one that was trained. Train it further, or call "
        "restore_(model) to run the checkpoint as it was",
        stacklevel=3,
    )


def _mismatches(own: Mark, loaded: Tensor, key: str) -> list[str]:
    """Errors for a checkpoint's mark that does not match; another gradient only warns (same outputs)."""
    try:
        said = read_mark(loaded)
    except ValueError as error:
        return [f"{key}: {error}"]
    if said.placement != own.placement:
        return [
            f"{key}: the checkpoint was trained with placement={said.placement!r} and the model has "
            f"{own.placement!r}; convert with PreconditionConfig(placement={said.placement!r})"
        ]
    if said.gradient != own.gradient:
        warnings.warn(
            f"this checkpoint was trained with gradient={said.gradient!r} and the model has {own.gradient!r}: outputs "
            "are the same, further training is not",
            stacklevel=2,
        )
    return []
