"""Preconditioned attention for folders that are loaded with `trust_remote_code=True`.

If the package preconditioned_attention is installed, it loads the model. Otherwise this file converts the plain model
as `config.json` describes, if all of its attention uses the attention interface of transformers or is converted by a
hook on a tensor that is described there; other models need the package.

Every row of a head's output (one token) is divided by its norm, `y = g_h x / ||x||`, unless the norm is at most eps.
From https://arxiv.org/abs/2603.27153.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from .preconditioned_folder import (
    ENTRY,
    HUB,
    REFUSING,
    build_config,
    find_modules,
    install,
    load,
    plain_config,
    read_config,
    said,
)

_GRADIENTS = ("full", "stop")
_PLACEMENTS = ("pre_skip", "post_skip")
_MARK_VERSION, _MARK_FIRST = 2, 2


class Preconditioner(nn.Module):
    """A child of every preconditioned attention: scales rows, holds the gain, marks the checkpoint."""

    def __init__(self, options: dict[str, Any], attachment: dict[str, Any], marker: bool, like: Tensor) -> None:
        super().__init__()
        self.options, self.attachment, self.marker = options, attachment, marker
        heads, gain = attachment["num_heads"], options["gain"]
        self.gain = None if gain is None else nn.Parameter(like.new_full((heads,), gain))
        sizes = (_GRADIENTS.index(options["gradient"]), _PLACEMENTS.index(options["placement"]))
        mark = like.new_ones(_MARK_VERSION, *(_MARK_FIRST + size for size in sizes)) if marker else None
        self.register_buffer("requires_preconditioned_attention", mark)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of shape ``(..., heads, tokens, head_dim)``, scaled."""
        eps = self.options["eps"]
        if eps is None:
            eps = 2.0**-14 if rows.dtype == torch.float16 else 1e-12
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        scaled, unit = _scaled(wide)
        zero = scaled.detach().square().sum(-1, keepdim=True).sqrt() <= eps * unit
        norm = scaled.square().sum(-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny).sqrt()
        norm = torch.where(zero, unit, norm)
        out = scaled / (norm.detach() if self.options["gradient"] == "stop" else norm)
        return (out if self.gain is None else out * self.gain.to(out.dtype).view(-1, 1, 1)).to(rows.dtype)


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``rows`` times a power of two per row, so that squares neither overflow nor underflow, and that power."""
    largest = rows.detach().abs().amax(-1, keepdim=True)
    usable = torch.isfinite(largest) & (largest > 0)
    exponent = torch.frexp(torch.where(usable, largest, torch.ones_like(largest))).exponent
    bound = 1000 if rows.dtype == torch.float64 else 120
    unit = torch.ldexp(torch.ones_like(largest), -exponent.clamp(-bound, bound))
    return rows * unit, unit


def _attach(model: nn.Module, entry: dict[str, Any]) -> None:
    """Give every attention that ``entry`` names its preconditioner."""
    _wrap()
    for path, saved in find_modules(model, entry).items():
        module = model.get_submodule(path)
        own = said(entry, saved)
        attachment = next(a for a in entry["attachments"] if saved in a["modules"])
        like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        described = {key: value for key, value in attachment.items() if key != "modules"}
        module.preconditioner = Preconditioner(own["config"], described, own["marker"], like)
        if attachment["form"] == "forward hook":
            module.register_forward_hook(_OutputHook(module.preconditioner))
    _hook(model)


def _hook(model: nn.Module) -> None:
    """Hook every target without a hook: at first all of them, after loading those that a quantizer has replaced."""
    for _, module, preconditioner in _converted(model):
        for point in preconditioner.attachment["points"]:
            layer = module.get_submodule(point)
            if not any(isinstance(hook, _RowHook) for hook in layer._forward_pre_hooks.values()):
                layer.register_forward_pre_hook(_RowHook(preconditioner))


def _converted(model: nn.Module) -> Iterator[tuple[str, nn.Module, Preconditioner]]:
    for path, module in model.named_modules():
        preconditioner = getattr(module, "preconditioner", None)
        if isinstance(preconditioner, Preconditioner):
            yield path, module, preconditioner


class _RowHook:
    """Scales the rows that a module gets as its first argument."""

    def __init__(self, preconditioner: Preconditioner) -> None:
        self.preconditioner = preconditioner

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return _on_layout(self.preconditioner, self.preconditioner.attachment["layout"], args[0]), *args[1:]


class _OutputHook(_RowHook):
    """Scales the rows that a module returns, alone or first in a tuple."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # type: ignore[override]
        layout = self.preconditioner.attachment["layout"]
        if isinstance(output, Tensor):
            return _on_layout(self.preconditioner, layout, output)
        return _on_layout(self.preconditioner, layout, output[0]), *output[1:]


def _on_layout(preconditioner: Preconditioner, layout: dict[str, Any], x: Tensor) -> Tensor:
    """The preconditioner on the heads of ``x``, which has the layout ``layout``."""
    form = layout["form"]
    if form == "split":
        return preconditioner(x)
    if form == "tokens":
        return preconditioner(x.transpose(-3, -2)).transpose(-3, -2)
    if form == "channels":
        merged = x.flatten(2).transpose(1, 2)
        return _on_merged(preconditioner, layout, merged).transpose(1, 2).reshape(x.shape)
    return _on_merged(preconditioner, layout, x.contiguous())


def _on_merged(preconditioner: Preconditioner, layout: dict[str, Any], x: Tensor) -> Tensor:
    width = x.shape[-1] if layout["width"] is None else layout["width"]
    own, other = x[..., :width], x[..., width:]
    interleaved, count = layout["interleaved"], layout["num_heads"] or width // layout["head_dim"]
    heads = own.unflatten(-1, (width // count, count) if interleaved else (count, width // count))
    heads = preconditioner(heads.movedim(-1, -3) if interleaved else heads.transpose(-3, -2))
    own = (heads.movedim(-3, -1) if interleaved else heads.transpose(-3, -2)).flatten(-2)
    return torch.cat([own, other], dim=-1) if other.shape[-1] else own


def _attend(attention: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The result of the attention function for ``module``, with scaled rows if the module is converted this way."""
    preconditioner = getattr(module, "preconditioner", None)
    rows, *rest = attention(module, *args, **kwargs)
    if not isinstance(preconditioner, Preconditioner) or preconditioner.attachment["form"] != "attention interface":
        return rows, *rest
    return preconditioner(rows.transpose(1, 2)).transpose(1, 2).contiguous(), *rest


def _describe(model: nn.Module) -> dict[str, Any] | None:
    """The entry in `config.json` for a model that was loaded here, and None for a plain one."""
    own = {path: preconditioner for path, _, preconditioner in _converted(model)}
    if not own:
        return None
    says: dict[str, Any] = {path: {"config": p.options, "marker": p.marker} for path, p in own.items()}
    first = next(iter(says.values()))
    return {
        **first,
        "modules": list(own),
        "attachments": [{**p.attachment, "modules": [path]} for path, p in own.items()],
        "exceptions": {path: said for path, said in says.items() if said != first},
    }


@functools.cache
def _wrap() -> None:
    """Wrap the look-up of attention functions and `save_pretrained`, once per process, when a model first needs it."""
    install(_describe)
    look_up = AttentionInterface.get_interface

    @functools.wraps(look_up)
    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return functools.partial(_attend, look_up(self, *args, **kwargs))

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]


class _Named:
    """A class that `auto_map` in `config.json` names, in place of an Auto class of transformers."""

    name: str

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: `auto_map` names the file already."""


class AutoConfig(_Named):
    """Reads the plain configuration, with the entry and the implementations that plain classes do not have."""

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> Any:
        """As `AutoConfig.from_pretrained` of transformers."""
        returns_rest = kwargs.pop("return_unused_kwargs", False)
        plain, entry = read_config(name, kwargs)
        if entry is None:
            raise ValueError(f"{name}: config.json has no entry {ENTRY!r}, so nothing says how the model is converted")
        # No plain class builds a model from it. Whoever is trusted with this file is with the model's own.
        kwargs = dict.fromkeys(REFUSING, ENTRY) | kwargs | {"trust_remote_code": True}
        config, rest = build_config(transformers.AutoConfig, plain, name, kwargs)
        rest = {key: value for key, value in rest.items() if key not in (*HUB, "trust_remote_code")}
        setattr(config, ENTRY, entry)
        auto_map, _ = transformers.PreTrainedConfig.get_config_dict(str(name))
        config.auto_map = auto_map["auto_map"]
        return (config, rest) if returns_rest else config


class _AutoModel(_Named):
    @classmethod
    def from_pretrained(cls, name: str | Path, *, config: Any, **kwargs: Any) -> Any:
        """As `from_pretrained` of the Auto class, by the package where it is installed."""
        auto_class = getattr(transformers, cls.name)
        for key in ("_from_auto", "adapter_kwargs"):
            kwargs.pop(key, None)
        if importlib.util.find_spec("preconditioned_attention"):
            package = importlib.import_module("preconditioned_attention.conversion")
            return package.from_pretrained(auto_class, name, config=config, **kwargs)
        plain, entry = _taken_apart(config, name)
        loaded = load(auto_class, name, entry, plain, _attach, kwargs)
        _hook(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        """A preconditioned model with fresh weights."""
        plain, entry = _taken_apart(config, config.name_or_path)
        model = getattr(transformers, cls.name).from_config(plain, trust_remote_code=True, **kwargs)
        _attach(model, entry)
        return model


def _taken_apart(config: Any, name: str | Path) -> tuple[Any, dict[str, Any]]:
    """The plain configuration and the entry, if this file can convert all modules."""
    plain, entry = plain_config(config)
    if entry is None:
        raise ValueError(
            f"{name}: the configuration has no entry {ENTRY!r}, so nothing says how the model is converted"
        )
    described = {module for attachment in entry["attachments"] for module in attachment["modules"]}
    missing = [module for module in entry["modules"] if module not in described]
    if missing:
        raise ImportError(
            f"{name}: {missing[0]!r} and {len(missing) - 1} more modules are converted in a way that only the package "
            "computes: pip install preconditioned-attention, and load the folder with "
            "preconditioned_attention.conversion.from_pretrained(model_class, folder)"
        )
    return plain, entry


def __getattr__(name: str) -> Any:
    if name.startswith(("AutoModel", "AutoBackbone")):
        return type(name, (_AutoModel,), {"name": name})
    raise AttributeError(name)
