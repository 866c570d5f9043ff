"""YAML in and out, with the errors a person needs to mend the file."""

from __future__ import annotations

import re
from typing import Any

from ._extras import require

# YAML 1.1, which PyYAML reads, takes 1e-3 for text because it has no point; people write learning rates that way.
_FLOAT_WITHOUT_POINT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")


def parse_yaml(text: str, *, source: str) -> dict[str, Any]:
    """The mapping that ``text`` holds. ``source`` names it in errors.

    Raises:
        ValueError: the text is not YAML, or holds something else than a mapping.
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
    """A loader or dumper that also takes 1e-3 for a number: the one reads it, the other quotes text of that form."""
    extended = type(base.__name__, (base,), {})
    extended.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT_WITHOUT_POINT, list("-+0123456789"))  # type: ignore[attr-defined]
    return extended
