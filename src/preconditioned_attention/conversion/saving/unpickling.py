"""Loading the adapters when a converted model is unpickled."""

from __future__ import annotations

from typing import Any

from ..registry import load_adapters


class Unpickled:
    """Base of the hooks: unpickling one imports the adapters, and with them what they patch, such as saving."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        load_adapters()
