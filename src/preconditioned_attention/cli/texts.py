"""``precond texts``: for maintainers, the source of attention classes that has not been reviewed."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from .._checks import check_known


def texts(
    library: Annotated[str, tyro.conf.Positional],
    *,
    accept: tuple[str, ...] = (),
) -> None:
    """Print the source of attention classes of an installed library that no maintainer has reviewed yet.

    The exit code is 1 if any is left. Accepted classes are recorded in this package's table of known sources.

    Args:
        library: The library, such as transformers, timm or torch.
        accept: Names, as printed, of classes that you have reviewed, including what happens to the rows of heads.
    """
    from ..lab.census.source_review import record_review, source_texts

    unreviewed = {text.name: text for text in source_texts(library) if not text.is_reviewed()}
    check_known("class to accept", accept, tuple(unreviewed))
    if accept:
        record_review([unreviewed[name] for name in accept], library)
    left = [text for name, text in unreviewed.items() if name not in accept]
    for text in left:
        print(f"# {text.name}\n{text.code()}")
    print(f"{len(accept)} recorded as read, {len(left)} left.", file=sys.stderr)
    if left:
        sys.exit(1)
