"""`torch.export`: the recorded operators, decompositions, dynamic shapes, files."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, preconditioned_varlen_attention
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
