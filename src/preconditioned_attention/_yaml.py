"""Reading and writing YAML, with errors that name the file."""

from __future__ import annotations

import re
from typing import Any

from ._extras import require

# YAML 1.1, which PyYAML implements, reads 1e-3 as a string because it has no decimal point.
_FLOAT_WITHOUT_POINT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")


def parse_yaml(text: str, *, source: str) -> dict[str, Any]:
    """Parse ``text`` as a mapping. ``source`` names it in errors.

    Raises:
        ValueError: the text is not YAML, or not a mapping.
    """
    yaml = require("yaml", extra="train")
    try:
        content = yaml.load(text, Loader=_with_floats(yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{source} must hold a mapping (key: value lines); got {type(content).__name__}")
    return content


def format_yaml(content: dict[str, Any]) -> str:
    """``content`` as YAML, keys in their order; numbers read back exactly."""
    yaml = require("yaml", extra="train")
    return yaml.dump(content, Dumper=_with_floats(yaml.SafeDumper), sort_keys=False)


def _with_floats(base: type) -> Any:
    """A loader that also reads 1e-3 as a number, or a dumper that quotes strings of that form."""
    extended = type(base.__name__, (base,), {})
    extended.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT_WITHOUT_POINT, list("-+0123456789"))  # type: ignore[attr-defined]
    return extended
