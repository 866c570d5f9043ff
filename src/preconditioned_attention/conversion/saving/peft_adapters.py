"""`load_adapter`: loading PEFT's adapters onto a base with the conversion that they were trained on."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ..._extras import require
from .safetensors_files import check_alike, converted_options

_HUB = ("cache_dir", "force_download", "token", "local_files_only", "revision", "subfolder")


def load_adapter(model: nn.Module, folder: str | Path, **kwargs: Any) -> Any:
    """`PeftModel.from_pretrained`, if ``model`` has the conversion of the base that the adapter was trained on.

    An adapter is saved without its base. If the base was preconditioned, ``adapter_config.json`` says so; PEFT's own
    loader warns about the unknown key and goes on.

    Args:
        model: the base.
        folder: the adapter's folder, or its name on the hub.
        kwargs: of `PeftModel.from_pretrained`.

    Raises:
        ValueError: the adapter's base and ``model`` were converted differently, or one was not.
        OSError: there is no adapter.
    """
    import peft

    from .standalone.preconditioned_folder import ADAPTER_ENTRY

    files = require("transformers.utils", extra="language")
    hub = {key: kwargs[key] for key in _HUB if key in kwargs}
    path = Path(files.cached_file(str(folder), "adapter_config.json", **hub))
    said, own = json.loads(path.read_text(encoding="utf-8")).get(ADAPTER_ENTRY, {}), converted_options(model)
    if own and not said:
        raise ValueError(
            f"{path} does not say that its base was preconditioned, and the model is: call restore_(model), or load "
            "the adapter with PeftModel.from_pretrained if you know that it was trained on this form"
        )
    check_alike(said, own, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=rf"Unexpected keyword arguments \['{ADAPTER_ENTRY}'\]")
        warnings.filterwarnings("ignore", message="this checkpoint does not say")  # of the base, which is not in it
        return peft.PeftModel.from_pretrained(model, str(folder), **kwargs)
