"""The form of a transformers folder with a preconditioned model, and how it is written and read.

A plain loader must not load the folder as a plain model. So `config.json` has a model type that transformers does not
know, at which the Auto classes raise, and an attention implementation that it does not know, at which the concrete
classes raise; the implementation of experts is another, for callers who pass an attention implementation. This is in
the file only: in memory a converted model keeps the configuration that it had before.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_utils import PreTrainedModel

ENTRY = "preconditioned_attention"
"""The key of the conversion in `config.json`, and the name of the implementations that plain loaders do not have."""

ADAPTER_ENTRY = "requires_preconditioned_attention"
"""The key in `adapter_config.json` for the conversion of the base."""

MARK = ".preconditioner.requires_preconditioned_attention"
GAIN = ".preconditioner.gain"
REFUSING = ("attn_implementation", "experts_implementation")
CODE = "modeling_preconditioned"
_FILES = (f"{CODE}.py", "preconditioned_folder.py")
_PREFIX = "preconditioned_"
_OWN_MAP = "own_auto_map"  # in the entry: the auto_map of a model that brings code of its own
HUB = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")
"""The arguments that locate a folder."""
# Arguments of `from_pretrained` that a configuration has an attribute for, or should not copy.
_NOT_OF_THE_CONFIG = ("dtype", "torch_dtype", "quantization_config", "state_dict")

Entry = dict[str, Any]
Describe = Callable[[nn.Module], Entry | None]
Attach = Callable[[nn.Module, Entry], None]


def folder_form(config: dict[str, Any], entry: Entry, auto_classes: Iterable[str]) -> dict[str, Any]:
    """The content of a plain ``config.json`` with ``entry``, in the form at which plain loaders raise."""
    entry = dict(entry)
    if "auto_map" in config:
        entry[_OWN_MAP] = config["auto_map"]
    form = _with_implementations(config, ENTRY)
    form["auto_map"] = {name: f"{CODE}.{name}" for name in ("AutoConfig", *auto_classes)}
    return form | {"model_type": _PREFIX + str(config.get("model_type", "")), ENTRY: entry}


def plain_form(config: dict[str, Any]) -> tuple[dict[str, Any], Entry | None]:
    """The inverse of :func:`folder_form`: the content of a plain ``config.json``, and the entry, if there is one.

    Folders from before that form have the entry in a ``config.json`` that is otherwise plain.
    """
    config = dict(config)
    entry = config.pop(ENTRY, None)
    if entry is None or not str(config.get("model_type", "")).startswith(_PREFIX):
        return config, entry
    config = _with_implementations(config, None)
    config["model_type"] = config["model_type"].removeprefix(_PREFIX)
    config.pop("auto_map", None)
    return (config | {"auto_map": entry[_OWN_MAP]} if _OWN_MAP in entry else config), entry


def _with_implementations(config: dict[str, Any], name: str | None) -> dict[str, Any]:
    """``config`` with the implementations set, or without them if ``name`` is None, also in parts with a model type.

    A part can be loaded by itself: the vision model from a folder with vision and text models.
    """
    found = {key: value for key, value in config.items() if key not in REFUSING}
    for key, value in found.items():
        if isinstance(value, dict) and "model_type" in value:
            found[key] = _with_implementations(value, name)
    return found if name is None else found | dict.fromkeys(REFUSING, name)


def install(describe: Describe) -> None:
    """Let `save_pretrained` of transformers write this form for models for which ``describe`` returns an entry."""
    save = PreTrainedModel.save_pretrained

    @functools.wraps(save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        entry = describe(self)
        if entry is None:
            return save(self, save_directory, *args, **kwargs)
        options = {name: entry["exceptions"].get(name, entry)["config"] for name in entry["modules"]}
        with contextlib.ExitStack() as stack:
            auto_classes = _auto_classes(self.config)
            stack.enter_context(_followed(self.config, lambda folder: _write(folder, entry, auto_classes)))
            for config in vars(self).get("peft_config", {}).values():  # adapters, saved without the model
                stack.enter_context(_followed(config, lambda folder: write_adapter_entry(folder, options)))
            return save(self, save_directory, *args, **kwargs)

    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


@contextlib.contextmanager
def _followed(config: Any, write: Callable[[Path], None]) -> Iterator[None]:
    """Inside the context, ``config.save_pretrained(folder)`` also calls ``write(folder)``.

    transformers uploads the folder right after that call.
    """

    def save_pretrained(folder: Any, *args: Any, **kwargs: Any) -> None:
        del config.__dict__["save_pretrained"]
        config.save_pretrained(folder, *args, **kwargs)
        write(Path(folder))

    config.__dict__["save_pretrained"] = save_pretrained
    try:
        yield
    finally:
        config.__dict__.pop("save_pretrained", None)


def write_adapter_entry(folder: Path, options: dict[str, Any]) -> None:
    """Add the conversion of the base to the ``adapter_config.json`` of PEFT, which ignores it with a warning."""
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {ADAPTER_ENTRY: options}
    path.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def _write(folder: Path, entry: Entry, auto_classes: Iterable[str]) -> None:
    path = folder / "config.json"
    form = folder_form(json.loads(path.read_text(encoding="utf-8")), entry, auto_classes)
    path.write_text(json.dumps(form, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in _FILES:
        (folder / name).write_bytes(Path(__file__).with_name(name).read_bytes())


def _auto_classes(config: Any) -> list[str]:
    """The Auto classes that build a model from ``config``."""
    own = [name for name in getattr(config, "auto_map", None) or {} if name.startswith("AutoModel")]
    known = vars(transformers.models.auto.modeling_auto).items()
    return own + [
        name
        for name, cls in known
        if name.startswith("Auto") and type(config) in (_mapping(cls) or ()) and name not in own
    ]


def _mapping(cls: Any) -> Any:
    return getattr(cls, "_model_mapping", None)


def plain_config(config: Any) -> tuple[Any, Entry | None]:
    """A copy of a configuration as a plain model has it, and the entry that it carried, if any."""
    plain = copy.deepcopy(config)
    entry = plain.__dict__.pop(ENTRY, None)
    if any(ref.startswith(f"{CODE}.") for ref in (getattr(plain, "auto_map", None) or {}).values()):
        del plain.auto_map
    if entry is not None and _OWN_MAP in entry:
        plain.auto_map = _located(entry[_OWN_MAP], plain.name_or_path)
    for name in REFUSING:
        if getattr(plain, f"_{name}", None) == ENTRY:
            setattr(plain, f"_{name}", None)
    return plain, entry


def read_config(name: str | Path, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Entry | None]:
    """:func:`plain_form` of the ``config.json`` in a folder or on the hub; ``kwargs`` are `from_pretrained`'s."""
    hub = {key: kwargs[key] for key in HUB if key in kwargs}
    config, _ = transformers.PreTrainedConfig.get_config_dict(str(name), **hub)
    return plain_form(config)


def build_config(
    config_class: Any, config: dict[str, Any], name: str | Path, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The configuration from the content of a plain ``config.json``, and those of ``kwargs`` that it did not use."""
    kept = {key: value for key, value in kwargs.items() if key in (*HUB, *_NOT_OF_THE_CONFIG)}
    other = {key: value for key, value in kwargs.items() if key not in kept}
    trusted = {key: kwargs[key] for key in ("trust_remote_code",) if key in kwargs}  # wanted twice, taken once
    if "auto_map" in config:
        config = config | {"auto_map": _located(config["auto_map"], name)}
    with tempfile.TemporaryDirectory() as folder:  # transformers' own reader handles parts, names and overrides
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        built, rest = config_class.from_pretrained(folder, return_unused_kwargs=True, **other)
    built.name_or_path = str(name)
    return built, {**rest, **kept, **trusted}


def _located(auto_map: dict[str, str], name: str | Path) -> dict[str, str]:
    """References to code in the folder ``name``, as they are written outside of it."""
    return {key: ref if "--" in ref else f"{name}--{ref}" for key, ref in auto_map.items()}


def load(
    model_class: Any, name: str | Path | None, entry: Entry, config: Any, attach: Attach, kwargs: dict[str, Any]
) -> Any:
    """The result of ``model_class.from_pretrained(name, **kwargs)``, converted by ``attach`` before weights are loaded.

    So gains and marks are loaded as all other weights: from any file, to the right device, in the right dtype.

    Raises:
        ValueError: the marks in the weights and ``entry`` do not say the same.
    """
    wants_info, wants_other_sizes = (
        kwargs.pop(key, False) for key in ("output_loading_info", "ignore_mismatched_sizes")
    )
    concrete = _concrete_class(model_class, config, kwargs)
    if not isinstance(config, getattr(concrete, "config_class", None) or object):
        config = config.get_text_config()
    attaching = _attaching(concrete, attach, entry)
    model, info = attaching.from_pretrained(
        name if name is None else str(name),
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **kwargs,
    )
    if type(model) is attaching:  # FSDP makes it one of a subclass, which has to stay
        model.__class__ = concrete
    _check(model, entry, info, "state_dict" if name is None else str(name))
    if info["mismatched_keys"] and not wants_other_sizes:
        raise RuntimeError(
            f"the weights of {name} have other shapes than the model's: {sorted(map(str, info['mismatched_keys']))}; "
            "pass ignore_mismatched_sizes=True to leave them out"
        )
    return (model, info) if wants_info else model


def _concrete_class(model_class: Any, config: Any, kwargs: dict[str, Any]) -> Any:
    """The class that an Auto class would build."""
    if issubclass(model_class, PreTrainedModel):
        return model_class
    own = (getattr(config, "auto_map", None) or {}).get(model_class.__name__)
    if own is not None and kwargs.get("trust_remote_code"):
        return get_class_from_dynamic_module(own, config.name_or_path)
    with torch.device("meta"):
        return type(model_class.from_config(copy.deepcopy(config)))


def _attaching(concrete: Any, attach: Attach, entry: Entry) -> Any:
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        concrete.__init__(self, config, *args, **kwargs)
        attach(self, entry)

    return type(concrete.__name__, (concrete,), {"__init__": __init__, "__module__": concrete.__module__})


def said(entry: Entry, name: str) -> dict[str, Any]:
    """The options of one listed module, and whether it has a mark."""
    own = entry.get("exceptions", {}).get(name, entry)
    return {"config": own["config"], "marker": own["marker"]}


def find_modules(model: nn.Module, entry: Entry) -> dict[str, str]:
    """Path in ``model`` -> name in ``entry``, for all modules that are there.

    If one of the two models has a head, the names differ by a prefix. Where a part is built alone (the vision model
    from a folder with both), other prefixes may be missing too: modules are matched by the ends of their names, and
    checked by their marks.

    Raises:
        ValueError: such a module has no mark to check it by, or could have one of several options.
    """
    paths, prefix = [path for path, _ in model.named_modules() if path], getattr(model, "base_model_prefix", "")
    here = {f"{prefix}.{path}": path for path in paths} | {path.removeprefix(f"{prefix}."): path for path in paths}
    here |= {path: path for path in paths}
    found = {here[name]: name for name in entry["modules"] if name in here}
    left = [name for name in entry["modules"] if name not in here]
    for path in paths:
        fitting = [name for name in left if path not in found and "." in path and _ends_alike(path, name)]
        if fitting:
            _check_provable(path, fitting, entry)
            found[path] = fitting[0]
    return found


def _ends_alike(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}") or name.endswith(f".{path}")


def _check_provable(path: str, names: list[str], entry: Entry) -> None:
    first, *others = (said(entry, name) for name in names)
    if not first["marker"] or any(other != first for other in others):
        raise ValueError(
            f"config.json lists {', '.join(map(repr, names))}, which {path!r} of this model may or may not be, and "
            "nothing in the weights tells; load the class that was saved, and take its part"
        )


def _check(model: nn.Module, entry: Entry, info: dict[str, Any], name: str) -> None:
    """Raise unless the weights have a mark for every module of ``entry`` that should have one, and for no other."""
    listed, paths = entry["modules"], list(find_modules(model, entry))
    missing = sorted(_modules(info["missing_keys"], MARK))
    other_mark = sorted(_modules((key for key, *_ in info["mismatched_keys"]), MARK))
    elsewhere = sorted(_modules(info["unexpected_keys"], MARK))
    unlisted = [path for path in elsewhere if _has(model, path) or not _is_listed(path, entry)]
    known = [*paths, *elsewhere]
    absent = [
        name for name in listed if not any(_ends_alike(path, name) for path in known) and not _ignored(model, name)
    ]
    for found, says, other in (
        (missing, "is preconditioned", "the weights have no mark of it, so it was trained plain"),
        (unlisted, "is plain, or has no mark", "the weights have its mark, so it was trained preconditioned"),
        (other_mark, "has the gradient and placement that it names", "its mark in the weights says others"),
        (absent, "is preconditioned", "neither model nor weights have such a module"),
    ):
        if found:
            raise ValueError(
                f"{name}: config.json says that {found[0]!r} {says}, and {other} ({len(found)} modules; "
                f"{len(listed)} are listed). The weights decide: correct the entry {ENTRY!r} of config.json, or take "
                "it out to load a plain model with from_pretrained of transformers"
            )
    lost = sorted(_modules(info["missing_keys"], GAIN))
    if lost:
        raise ValueError(f"the weights in {name} have 0 gains for {lost[0]!r}; one was expected")


def _modules(keys: Iterable[str], suffix: str) -> Iterator[str]:
    return (key.removesuffix(suffix) for key in keys if key.endswith(suffix))


def _has(model: nn.Module, path: str) -> bool:
    prefix = getattr(model, "base_model_prefix", "")
    spellings = {path, f"{prefix}.{path}", path.removeprefix(f"{prefix}.")}
    return any(own in spellings for own, _ in model.named_modules())


def _is_listed(path: str, entry: Entry) -> bool:
    """Whether a module that the weights mark, and that the model does not have, is listed with a mark."""
    return any(_ends_alike(path, name) and said(entry, name)["marker"] for name in entry["modules"])


def _ignored(model: nn.Module, name: str) -> bool:
    """Whether the model class ignores such keys silently, as an encoder ignores the decoder's."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name + MARK) for pattern in patterns)
