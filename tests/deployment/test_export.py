"""`torch.export`: the recorded operators, decompositions, dynamic shapes, files."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

from preconditioned_attention import (
    PreconditionConfig,
    equilibrate,
    preconditioned_attention,
    preconditioned_varlen_attention,
)
from preconditioned_attention.equilibration import equilibrate_by_formula
from tests.helpers.deployment_models import FAMILIES, LANGUAGE, assert_is_converted
from tests.helpers.explicit import relative_error

ALL = FAMILIES | LANGUAGE


def foreign(program: torch.export.ExportedProgram) -> set[str]:
    """The operators that are not PyTorch's own."""
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    operators = [target for target in calls if isinstance(target, torch._ops.OpOverload)]
    return {str(operator) for operator in operators if operator.namespace not in ("aten", "prims")}


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("maxvit", "beit")])  # others stand for them
def test_every_family_is_exported_and_decomposed(name: str) -> None:
    """Of GPT-2 that is more than the plain model takes: see `ops/sdpa_then_normalize.py` on layouts."""
    family = ALL[name]
    program = torch.export.export(family.converted(), (family.inputs(),))
    assert not foreign(program)
    assert_is_converted(program.module()(family.inputs()), family)
    core = program.run_decompositions()
    assert not foreign(core)
    assert not any("scaled_dot_product" in str(node.target) for node in core.graph.nodes)
    assert_is_converted(core.module()(family.inputs()), family)


@pytest.mark.parametrize(("strict", "training"), [(False, True), (True, False)])
def test_both_ways_to_export_and_both_modes(strict: bool, training: bool) -> None:
    family = FAMILIES["vit"]
    model = family.converted(PreconditionConfig(gradient="stop", gain=1.5)).train(training)
    x = family.inputs()
    program = torch.export.export(model, (x,), strict=strict)
    for lowered in (program.run_decompositions(), program.run_decompositions({})):
        assert relative_error(lowered.module()(x), model(x)) <= 1e-5


def test_a_dynamic_batch() -> None:
    family = FAMILIES["encoder"]
    model, x = family.converted(), family.inputs()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=[{0: batch}]).run_decompositions()
    more = torch.cat([x, -x, 2 * x])
    assert relative_error(program.module()(more), model(more)) <= 1e-5


def test_it_can_be_differentiated() -> None:
    """An exported program trains on: the gradients are those of the model."""
    family = FAMILIES["vit"]
    for config in (PreconditionConfig(), PreconditionConfig(gradient="stop")):
        model, x = family.converted(config), family.inputs()
        program = torch.export.export(model, (x,)).module()
        grads = [
            torch.autograd.grad(m(x).square().sum(), m.get_parameter("blocks.0.attn.qkv.weight"))[0]
            for m in (model, program)
        ]
        assert relative_error(*grads) <= 1e-4


def test_a_file_that_runs_without_our_classes(tmp_path: Path) -> None:
    family = FAMILIES["torchvision swin"]
    torch.export.save(torch.export.export(family.converted(), (family.inputs(),)), tmp_path / "model.pt2")
    assert_is_converted(torch.export.load(tmp_path / "model.pt2").module()(family.inputs()), family)


class Packed(nn.Module):
    """Sequences packed end to end, which run by an operator of this package on the CPU."""

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        return preconditioned_varlen_attention(rows, rows, rows, offsets, offsets, 4, 4)


def test_a_file_with_an_operator_of_ours_runs_where_ops_is_imported(tmp_path: Path) -> None:
    inputs = torch.randn(7, 2, 16), torch.tensor([0, 3, 7], dtype=torch.int32)
    torch.export.save(torch.export.export(Packed(), inputs), tmp_path / "model.pt2")
    torch.save((inputs, Packed()(*inputs)), tmp_path / "expected.pt")
    script = f"""
import preconditioned_attention.ops
import torch
inputs, expected = torch.load({str(tmp_path / "expected.pt")!r})
program = torch.export.load({str(tmp_path / "model.pt2")!r})
torch.testing.assert_close(program.module()(*inputs), expected)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_fused_kernel_cannot_be_exported() -> None:
    family = FAMILIES["vit"]
    model = family.converted(PreconditionConfig(backend="flash"))
    with pytest.raises(ValueError, match=r"backend='flash' does not support.*torch.export.*Use backend='auto'"):
        torch.export.export(model, (family.inputs(),))


def test_the_mark_travels_with_the_program() -> None:
    family = FAMILIES["vit"]
    model: nn.Module = family.converted()
    assert torch.export.export(model, (family.inputs(),)).state_dict.keys() == model.state_dict().keys()


class Attending(nn.Module):
    """A projection, and attention with options."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.project, self.gain, self.options = nn.Linear(16, 48), nn.Parameter(torch.tensor([1.5, 0.5])), options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return preconditioned_attention(q, k, v, gain=self.gain, **self.options)


class AttendingPacked(Attending):
    """The same within each of two packed sequences."""

    def forward(self, x: Tensor, cu_seq: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 8)).unbind(1)
        return preconditioned_varlen_attention(q, k, v, cu_seq, cu_seq, 6, 6, gain=self.gain, **self.options)


def saved_and_loaded(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, inputs), buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()


RECORDED: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], nn.Module]] = {
    "export": lambda model, inputs: torch.export.export(model, inputs).module(),
    "strict": lambda model, inputs: torch.export.export(model, inputs, strict=True).module(),
    "decomposed": lambda model, inputs: torch.export.export(model, inputs).run_decompositions().module(),
    "functional": lambda model, inputs: torch.export.export(model, inputs).run_decompositions({}).module(),
    "file": saved_and_loaded,
    "unflattened": lambda model, inputs: torch.export.unflatten(torch.export.export(model, inputs)),
    "copied": lambda model, inputs: copy.deepcopy(torch.export.export(model, inputs).module()),
    "compiled": lambda model, inputs: torch.compile(torch.export.export(model, inputs).module(), backend="aot_eager"),
    "torch.fx": lambda model, inputs: symbolic_trace(model),
    "torch.jit": lambda model, inputs: torch.jit.trace(model, inputs),
}


def two_steps(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The results and gradients of two steps of training."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, 0.1)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        out = model(*inputs)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        optimizer.step()
        found += [out.detach(), *(parameter.grad.clone() for parameter in parameters)]
    return found


CASES: list[tuple[str, type[nn.Module], dict[str, object]]] = [
    *((how, Attending, {"gradient": "stop"}) for how in RECORDED),
    *((how, AttendingPacked, {}) for how in RECORDED),
    ("decomposed", Attending, {"gradient": "stop", "backend": "reference"}),
    ("decomposed", AttendingPacked, {"gradient": "stop", "is_causal": True, "backend": "flash"}),
]
SLOW_CASES: list[tuple[str, type[nn.Module], dict[str, object]]] = [
    (how, kind, {"gradient": gradient, "backend": backend, "is_causal": True})
    for how in RECORDED
    for gradient in ("full", "stop")
    for kind, backend in (
        (Attending, "auto"),
        (Attending, "composition"),
        (Attending, "reference"),
        (AttendingPacked, "auto"),
    )
]


@pytest.mark.parametrize(
    ("how", "kind", "options"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)]
)
def test_what_was_recorded_is_trained(how: str, kind: type[nn.Module], options: dict[str, object]) -> None:
    """Also where decompositions drop `detach`. Packed sequences may have other boundaries than when recorded."""
    torch._dynamo.reset()
    inputs = (torch.randn(6, 16),) if kind is AttendingPacked else (torch.randn(2, 5, 16),)
    if kind is AttendingPacked:
        inputs = (*inputs, torch.tensor([0, 4, 6], dtype=torch.int32))

    def build() -> nn.Module:
        torch.manual_seed(0)
        return kind(**options).double()

    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    other = (*inputs[:1], torch.tensor([0, 1, 6], dtype=torch.int32))[: len(inputs)]
    expected = two_steps(build(), other)
    for actual, exact in zip(two_steps(RECORDED[how](build(), inputs), other), expected, strict=True):
        assert (actual - exact).abs().max() <= 1e-12


def test_packed_sequences_are_not_recorded_one_by_one() -> None:
    """Their lengths would become constants of the program."""
    inputs = torch.randn(6, 16), torch.tensor([0, 4, 6], dtype=torch.int32)
    for record in (RECORDED["export"], RECORDED["torch.jit"]):
        with pytest.raises(ValueError, match=r"recorded .* by the packed flash kernel alone.*whose lengths would be"):
            record(AttendingPacked(backend="composition"), inputs)
        with pytest.raises(ValueError, match=r"recorded .*the kernel has no dropout"):
            record(AttendingPacked(dropout_p=0.5), inputs)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-30, 1e-13, 1e-6, 1.0, 1e20, 3e38])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_constant_norm_of_a_program_is_exact(size: float, dtype: torch.dtype) -> None:
    """Rows of every size: the norm goes through `round`, which may change nothing."""

    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return equilibrate(x, gradient="stop")

    x = (torch.randn(4, 8, dtype=torch.float64) * size).to(dtype)
    program = torch.export.export(Rows(), (x,)).run_decompositions()
    expected = equilibrate_by_formula(x, gradient="stop", eps=None, gain=None)
    torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=0, equal_nan=True)
