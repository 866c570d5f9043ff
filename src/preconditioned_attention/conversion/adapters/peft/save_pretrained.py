"""PEFT: a wrapper of `PeftModel.save_pretrained` that records the options of a preconditioned base model.

An adapter is saved without its base model, under the name of the plain one. The wrapper changes nothing for a plain
base model.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

from peft import PeftModel

from ...saving.safetensors_files import converted_options
from ...saving.standalone.preconditioned_folder import write_adapter_entry

_save = PeftModel.save_pretrained
_signature = inspect.signature(_save)


@functools.wraps(_save)
def _save_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
    _save(self, *args, **kwargs)
    given = _signature.bind(self, *args, **kwargs)
    given.apply_defaults()
    options = converted_options(self.get_base_model())
    if not options or not given.arguments["is_main_process"]:
        return
    folder, selected = Path(given.arguments["save_directory"]), given.arguments["selected_adapters"]
    for name in self.peft_config if selected is None else selected:
        write_adapter_entry(folder if name == "default" else folder / name, options)


PeftModel.save_pretrained = _save_pretrained  # type: ignore[method-assign]
