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
