"""`make census`: which modules of other packages compute attention, and which of them detection finds without a run.

Every case of the table `cases/` is built and run once, watched operator by operator: what is seen then is the truth.
Against it stands what `plan_conversion` says without inputs. An independent check of the truth itself: every class that
is named after attention and has run must be found by one of the two, or be in `NO_WEIGHTS` with the reason why it is
none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES, Case

from preconditioned_attention.conversion import plan_conversion
from preconditioned_attention.conversion.detection.runtime import call_arguments, detect_in_run, unlisted_attention
from preconditioned_attention.lab.census.support import with_census

# Classes that are named after attention, have run, and weigh nothing by a softmax.
NO_WEIGHTS = {
    "monai.networks.nets.daf3d.AttentionModule": "a gate: a convolution's sigmoid times the features",
    "timm.layers.selective_kernel.SelectiveKernelAttn": "it chooses among branches of convolutions: a mixture",
    "timm.layers.split_attn.SplitAttn": "it chooses among branches of convolutions: a mixture",
}


@dataclass
class Count:
    """What was found in one package, as names of classes."""

    cases: int = 0
    seen: set[str] = field(default_factory=set)
    missed: set[str] = field(default_factory=set)
    only_read: set[str] = field(default_factory=set)
    neither: set[str] = field(default_factory=set)

    def add(self, build: Case) -> None:
        """Build one case, read it and run it."""
        torch.manual_seed(0)
        model, inputs = build()
        model.eval()
        listed = plan_conversion(model).entries
        args, kwargs = call_arguments(inputs)
        with ExitStack() as stack:
            ran = _recording(model, stack)
            seen = detect_in_run(model, args, kwargs)
        self.cases += 1
        self.seen |= {_class(model, path) for path in seen}
        self.missed |= {_class(model, path) for path in unlisted_attention(model, seen, listed)}
        unknown = {entry.path for entry in listed if entry.status == "unknown"}
        self.only_read |= {_class(model, path) for path in unknown & ran if not _related(path, seen)}
        found = {*seen, *(entry.path for entry in listed)}
        self.neither |= {_class(model, path) for path in ran if _named(model, path) and not _related(path, found)}

    def settle(self) -> None:
        """A class that was seen in one case is none of those that were seen in none."""
        self.only_read -= self.seen
        self.neither -= {*self.seen, *self.only_read, *NO_WEIGHTS}


def _recording(model: nn.Module, stack: ExitStack) -> set[str]:
    """The paths of the modules that run from now on."""
    ran: set[str] = set()
    for path, module in model.named_modules():
        handle = module.register_forward_pre_hook(lambda module, args, path=path: ran.add(path))
        stack.callback(handle.remove)
    return ran


def _class(model: nn.Module, path: str) -> str:
    cls = type(model.get_submodule(path))
    return f"{cls.__module__}.{cls.__qualname__}"


def _named(model: nn.Module, path: str) -> bool:
    return re.search(r"attention|attn|attend", type(model.get_submodule(path)).__name__, re.IGNORECASE) is not None


def _related(path: str, others: set[str]) -> bool:
    """Whether one of ``others`` is the module, in it, or around it."""
    return any(
        other == path or not other or not path or other.startswith(f"{path}.") or path.startswith(f"{other}.")
        for other in others
    )


def counted() -> Iterator[tuple[str, Count]]:
    """Package by package."""
    for package, cases in CASES.items():
        count = Count()
        for name, build in cases.items():
            try:
                count.add(build)
            except Exception as error:
                error.add_note(f"in the case {package} / {name}")
                raise
        count.settle()
        yield package, count


def table(counts: dict[str, Count]) -> str:
    """The figures as Markdown."""
    lines = [
        "| package | version | cases | classes seen computing attention | of these not read | read and not seen |",
        "|---|---|---|---|---|---|",
    ]
    for package, count in counts.items():
        version = importlib.metadata.version(package)
        cells = (package, version, count.cases, len(count.seen), _names(count.missed), _names(count.only_read))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", summary(counts)])


def _names(classes: set[str]) -> str:
    short = ", ".join(f"`{name.rpartition('.')[2]}`" for name in sorted(classes))
    return f"{len(classes)}: {short}" if classes else "0"


def summary(counts: dict[str, Count]) -> str:
    """The totals, in a sentence or two."""
    seen, missed = (sum(len(getattr(count, name)) for count in counts.values()) for name in ("seen", "missed"))
    only_read, neither = (sum(len(getattr(c, name)) for c in counts.values()) for name in ("only_read", "neither"))
    versions = f"torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}"
    return (
        f"{len(counts)} packages, {sum(count.cases for count in counts.values())} cases: {seen} classes were seen "
        f"computing attention, and reading the code missed {missed} of them ({missed / seen:.1%}). {only_read} were "
        f"listed by their code and not seen. {neither} classes that are named after attention were found by neither; "
        f"{len(NO_WEIGHTS)} such classes weigh nothing by a softmax, or branches, and are known to the census by name. "
        f"{versions}, {datetime.now(UTC):%Y-%m-%d}."
    )


def main() -> int:
    """Print the figures; 1 where reading misses more than 2 % or both together miss anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="the page whose census section is written anew")
    page = parser.parse_args().page
    warnings.filterwarnings("ignore")
    counts = dict(counted())
    text = table(counts)
    print(text)
    for package, count in counts.items():
        for name in sorted(count.neither):
            print(f"found by neither: {package}: {name}")
    if page is not None:
        page.write_text(with_census(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    seen, missed = (sum(len(getattr(count, name)) for count in counts.values()) for name in ("seen", "missed"))
    return int(missed > 0.02 * seen or any(count.neither for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
