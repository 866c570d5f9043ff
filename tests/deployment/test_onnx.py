"""ONNX, by both of PyTorch's exporters: onnxruntime computes what the converted model does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.deployment_models import FAMILIES, LANGUAGE, Family, assert_is_converted
from tests.helpers.explicit import relative_error

onnx = pytest.importorskip("onnx", reason="the dev extra brings it")
onnxruntime = pytest.importorskip("onnxruntime", reason="the dev extra brings it")
pytest.importorskip("onnxscript", reason="the dev extra brings it")
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters speak of their own future

ALL = FAMILIES | LANGUAGE
# By the older exporter onnxruntime does not load the graph of the plain NystromAttention either.
BY_TRACING = [name for name in FAMILIES if name not in ("own layers", "maxvit")]


def run(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (first,) = session.get_inputs()
    return torch.from_numpy(session.run(None, {first.name: x.numpy()})[0])


def exported(model: nn.Module, x: Tensor, path: Path, **options: object) -> Path:
    torch.onnx.export(model, (x,), path, verbose=False, **options)
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "ai.onnx"}
    return path


@pytest.mark.parametrize("name", BY_TRACING)
def test_the_exporter_that_traces(name: str, tmp_path: Path) -> None:
    family: Family = FAMILIES[name]
    path = exported(family.converted(), family.inputs(), tmp_path / "model.onnx", dynamo=False)
    assert_is_converted(run(path, family.inputs()), family)


@pytest.mark.parametrize("name", ["torchvision swin"])
def test_the_exporter_by_torch_export(name: str, tmp_path: Path) -> None:
    family: Family = ALL[name]
    path = exported(family.converted(), family.inputs(), tmp_path / "model.onnx", dynamo=True)
    assert_is_converted(run(path, family.inputs()), family)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("torchvision swin", "beit")])
def test_every_other_family_by_torch_export(name: str, tmp_path: Path) -> None:
    test_the_exporter_by_torch_export(name, tmp_path)


@pytest.mark.slow
def test_beit_fails_as_the_plain_model_does(tmp_path: Path) -> None:
    """PyTorch 2.15's exporter cannot decompose timm's BEiT, converted or not; once it can, export both again."""
    family = FAMILIES["beit"]
    for model in (family.plain(), family.converted()):
        with pytest.raises(torch.onnx.errors.OnnxExporterError, match="Cannot view a tensor"):
            exported(model, family.inputs(), tmp_path / "model.onnx", dynamo=True)


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_dynamic_batch(dynamo: bool, tmp_path: Path) -> None:
    family = FAMILIES["encoder"]
    model, x = family.converted(), family.inputs()
    axes = (
        {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}, "input_names": ["x"]}
    )
    path = exported(model, x, tmp_path / "model.onnx", dynamo=dynamo, **axes)
    more = torch.cat([x, -x, 2 * x])
    assert relative_error(run(path, more), model(more)) <= 1e-5
