"""``precond texts``: for maintainers, the code of attention classes that nobody has read yet, and its record."""

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
    """Print the code of the classes of a library, as installed, that an adapter serves only once it was read.

    The exit code is 1 if any is left. What is accepted is recorded in this package's table of known texts.

    Args:
        library: Such as transformers, timm or torch.
        accept: Names of classes that you have read, as they are printed; what their heads' rows become has been seen.
    """
    from ..lab.census.reading import readings, record

    unread = {reading.name: reading for reading in readings(library) if not reading.is_known()}
    check_known("class to accept", accept, tuple(unread))
    if accept:
        record([unread[name] for name in accept], library)
    left = [reading for name, reading in unread.items() if name not in accept]
    for reading in left:
        print(f"# {reading.name}\n{reading.code()}")
    print(f"{len(accept)} recorded as read, {len(left)} left.", file=sys.stderr)
    if left:
        sys.exit(1)
