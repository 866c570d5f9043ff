"""The table of the census: package -> name of a case -> a function that builds a small model and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from . import graphs, language, speech, vision

Case = Callable[[], tuple[nn.Module, object]]

CASES: Mapping[str, Mapping[str, Case]] = {**vision.CASES, **graphs.CASES, **language.CASES, **speech.CASES}
