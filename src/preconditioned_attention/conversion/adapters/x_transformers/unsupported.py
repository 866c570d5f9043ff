"""x-transformers: attention classes that cannot be converted."""

from __future__ import annotations

from ...unsupported import UnsupportedClass

UNSUPPORTED = {
    # Looked up only where it is not a part of `Attention`.
    "x_transformers.attend.Attend": UnsupportedClass(
        "it is a part of an Attention, which is converted as a whole, and is used outside of it here"
    ),
}
