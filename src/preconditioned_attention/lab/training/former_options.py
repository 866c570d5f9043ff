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

# The task "digits" before it was a run of image-classification.
DIGITS_MODEL = {"in_chans": 1, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0}
DIGITS_MODEL |= {"proj_drop_rate": 0.0, "attn_drop_rate": 0.0}
DIGITS_OPTIONS: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "dataset": "digits",
    "image_size": 8,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "preprocessing": "none",
    "optimizer": None,
}


def update_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` of a run with today's words and tasks, and with ``eps``, if it is missing, as the task had it."""
    updated = {name: _update_words(value) for name, value in options.items()}
    if options.get("task") == "digits":
        updated |= {"task": "image-classification", "task_options": _update_digits(options.get("task_options") or {})}
    return {"eps": FORMER_EPS.get(str(options.get("task"))), **updated}


def _update_digits(options: Mapping[str, Any]) -> dict[str, Any]:
    seed = {"split_seed": options["split_seed"]} if "split_seed" in options else {}
    model = {name: value for name, value in options.items() if name != "split_seed"}
    return {**DIGITS_OPTIONS, "model_options": {**DIGITS_MODEL, **model}, **seed}


def _update_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _update_words(entry) for name, entry in value.items()}
    return FORMER_WORDS.get(value, value) if isinstance(value, str) else value
