"""Looking up classes by their qualified names."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from torch import nn


def class_name(cls: type) -> str:
    """``package.module.Class``, the key of the registry."""
    return f"{cls.__module__}.{cls.__qualname__}"


def existing_class(name: str) -> type[nn.Module]:
    """The module class of that name: one that is defined already, or one that is imported now.

    Raises:
        ValueError: the name matches nothing, or something else; the message has the part that fails and the nearest
            match.
    """
    for cls in _subclasses(nn.Module):
        if class_name(cls) == name:
            return cls
    found = _look_up(name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise _refused(name, f"it names a {type(found).__name__}, not a subclass of torch.nn.Module")
    return found


def nearest(word: str, candidates: Sequence[str]) -> str:
    """`" (did you mean ...?)"` with the candidate nearest to ``word``, or nothing."""
    matches = difflib.get_close_matches(word, candidates, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _look_up(name: str) -> object:
    """Follow the dots, importing what is a module."""
    first, *rest = name.split(".")
    if not rest or not all([first, *rest]):
        raise _refused(name, "a name is 'package.module.Class'")
    if "<locals>" in rest:
        raise _refused(name, "a class that is defined in a function cannot be looked up")
    found: object = _module(name, first)
    if found is None:
        raise _refused(name, f"no package or module {first!r} is installed")
    path = first
    for part in rest:
        owner, path = found, f"{path}.{part}"
        found = _attribute(name, owner, part)
        if found is None and isinstance(owner, ModuleType):
            found = _module(name, path)
        if found is None:
            raise _refused(name, f"{_described(owner)} has no {part!r}")
    return found


def _attribute(name: str, owner: object, part: str) -> object:
    """What ``owner`` has by the name ``part``, or None; a lazy module may import it now."""
    try:
        return getattr(owner, part, None)
    except ImportError as error:
        raise _refused(name, f"importing {part} fails: {error}") from error


def _module(name: str, path: str) -> ModuleType | None:
    """The module at ``path``, imported; None if there is none."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            return None
        raise _refused(name, f"importing {path} fails: {error}") from error
    except ImportError as error:
        raise _refused(name, f"importing {path} fails: {error}") from error


def _described(owner: object) -> str:
    if not isinstance(owner, ModuleType):
        return f"{owner!r}"
    unfinished = getattr(owner.__spec__, "_initializing", False) or owner is sys.modules["__main__"]
    return f"module {owner.__name__}" + (" (as far as it has run)" if unfinished else "")


def _refused(name: str, reason: str) -> ValueError:
    hint = nearest(name, [class_name(cls) for cls in _subclasses(nn.Module)])
    return ValueError(f"no attention class is named {name!r}: {reason}; pass the class itself, or its full name{hint}")


def _subclasses(cls: type[nn.Module]) -> Iterator[type[nn.Module]]:
    """Every class derived from ``cls`` in this process; of several with one name the newest comes first."""
    pending, seen = [cls], set()
    while pending:
        found = pending.pop()
        if found not in seen:
            seen.add(found)
            pending.extend(found.__subclasses__())
            yield found
