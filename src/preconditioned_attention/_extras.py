"""Imports of optional dependencies, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module`` or say which extra of this package installs it.

    Args:
        module: dotted name, such as ``"timm"`` or ``"matplotlib.pyplot"``.
        extra: the extra that brings it: ``"vision"``, ``"language"``, ``"train"``, ``"ray"`` or ``"theory"``.

    Raises:
        ImportError: the module is not installed; the message holds the ``pip`` command. A module that is
            installed but broken raises its own error unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ImportError(
            f"{module!r} is needed here and is not installed. "
            f"Install the extra that brings it: pip install 'preconditioned-attention[{extra}]'"
        ) from error
