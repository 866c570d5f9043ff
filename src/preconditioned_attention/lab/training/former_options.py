"""Training options that earlier versions saved, in today's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Adam's eps in the tasks that set it before it was an option of the run.
FORMER_EPS = {"masked-lm": 1e-12, "glue": 1e-6, "notebook-gpt2": 1e-9}
FORMER_EPS |= {f"lra-{name}": 1e-6 for name in ("image", "listops", "pathfinder", "retrieval", "text")}

FORMER_WORDS = {
    "tokenised": "tokenized",
    "tokenised rows": "tokenized rows",
    "synchronised": "synchronized",
}


def update_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` of a run with values spelled as today, and with ``eps``, if it is missing, as the task had it."""
    updated = {name: _update_words(value) for name, value in options.items()}
    return {"eps": FORMER_EPS.get(str(options.get("task"))), **updated}


def _update_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _update_words(entry) for name, entry in value.items()}
    return FORMER_WORDS.get(value, value) if isinstance(value, str) else value
