"""diffusers: the hooks of its tables. A converted module checks its processor whenever it is called."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ....layers import Preconditioner
from ...registry import add_adapter, composites_named
from ...row_hooks import OutputHook
from ..table_hooks import TablePreHook, register_table
from .processors import unsupported_processor_reason
from .tables import COMPOSITES, WITH_PROCESSOR, WITHOUT_PROCESSOR


def check_processor(module: nn.Module, args: tuple[Any, ...]) -> None:
    """A forward pre-hook that raises if the processor was replaced by one that is not known."""
    reason = unsupported_processor_reason(module.processor)
    if reason is not None:
        raise ValueError(
            f"this attention is preconditioned, and {reason}; go back to the processor that it was converted with "
            "(set_attn_processor), or call restore_(model) first"
        )


class StreamsHook(OutputHook):
    """A forward hook for attention without output projections, which returns one tensor per stream."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Precondition the output, one tensor or several."""
        if isinstance(output, Tensor):
            return self.layout.apply(self.preconditioner, output)
        return tuple(x if x is None else self.layout.apply(self.preconditioner, x) for x in output)


class ProcessorHook(TablePreHook):
    """Attention that a processor computes: hooks on its projections, or on the module if it has none."""

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """A condition of the row, or a processor that is not known."""
        return super().unsupported_reason(module) or unsupported_processor_reason(module.processor)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the projections, or the module if it has none, and check its processor at every call."""
        if not self.hook_targets(module):
            module.register_forward_hook(StreamsHook(preconditioner, self.layout(module)))
        super().attach(module, preconditioner)
        module.register_forward_pre_hook(check_processor)

    def detach(self, module: nn.Module) -> None:
        """Remove every hook of ours."""
        super().detach(module)
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, StreamsHook)]:
            del module._forward_hooks[key]
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is check_processor]:
            del module._forward_pre_hooks[key]


for _name, _row in WITH_PROCESSOR.items():
    add_adapter(ProcessorHook(_row), _name)
register_table(WITHOUT_PROCESSOR)
composites_named(*COMPOSITES)
