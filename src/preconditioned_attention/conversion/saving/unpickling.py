"""What a converted model brings along when it is unpickled in a process that has converted nothing yet."""

from __future__ import annotations

from typing import Any

from ..registry import load_adapters


class Unpickled:
    """Base of the hooks: whoever unpickles one gets the adapters too, and with them what they wrap (saving, say)."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        load_adapters()
