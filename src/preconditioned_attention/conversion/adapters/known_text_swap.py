"""Class swaps for upstream classes whose source text is the one that the replacement was written against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from ..adapter import HeadShape, read_int
from ..class_names import class_name
from ..mechanisms import ClassSwap
from ..source_texts.reachable_code import text_digest


class KnownTextSwap(ClassSwap):
    """A class swap for a class whose source text is known; with any other text, the adapter does not apply.

    Attributes:
        methods: name of a method of the class -> digest of its source text.
        functions: the same for functions that these methods call.
    """

    methods: ClassVar[Mapping[str, str]]
    functions: ClassVar[Mapping[Callable[..., Any], str]] = {}

    @classmethod
    def is_text_known(cls) -> bool:
        """Whether every digest is that of the installed version."""
        texts = {getattr(cls.original, name): digest for name, digest in cls.methods.items()}
        return all(text_digest(function) == digest for function, digest in {**texts, **cls.functions}.items())

    def supports(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether ``cls`` is the class itself or already the replacement, and its text is known."""
        return super().supports(cls, registered) and self.is_text_known()

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "head_dim"))


class RequiredTextSwap(KnownTextSwap):
    """A class swap for a class whose source text is known; any other text is reported as unsupported."""

    read_in: ClassVar[str]  # the version that the replacement was written for

    def supports(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether ``cls`` is the class itself or already the replacement, whatever its text."""
        return ClassSwap.supports(self, cls, registered)

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """Another source text, which may compute something else."""
        if self.is_text_known():
            return None
        return f"the code of {class_name(self.original)} is not that of {self.read_in}, which was read"
