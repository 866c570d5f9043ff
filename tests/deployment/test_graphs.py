"""Graphs of torch.fx: symbolic tracing, torchvision's and timm's feature extraction, quantization of graphs."""

import copy
import io
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from timm.models._features_fx import create_feature_extractor as timm_extractor
from timm.models._features_fx import get_graph_node_names as timm_names
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torchvision.models import feature_extraction

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from tests.helpers.deployment_models import FAMILIES, INCLUDE, Family, assert_is_converted, trained_a_little
from tests.helpers.explicit import relative_error

GAINED = PreconditionConfig(gain=1.5)


def through_torchvision(model: nn.Module, x: Tensor) -> Tensor:
    last = feature_extraction.get_graph_node_names(model)[1][-1]
    return feature_extraction.create_feature_extractor(model, [last])(x)[last]


def through_timm(model: nn.Module, x: Tensor) -> Tensor:
    last = timm_names(model)[1][-1]
    return timm_extractor(model, {last: "out"})(x)["out"]


TOOLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "torch.fx": lambda model, x: symbolic_trace(model)(x),
    "torchvision": through_torchvision,
    "timm": through_timm,
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.mark.parametrize("tool", TOOLS)
def test_the_graph_computes_what_the_model_does(tool: str, family: Family) -> None:
    assert_is_converted(TOOLS[tool](family.converted(), family.inputs()), family, within=1e-6)


def test_the_graph_holds_the_preconditioners(family: Family) -> None:
    """With their gains and marks, whichever mechanism brings them in; and tracing leaves nothing in the model."""
    model, x = family.converted(GAINED), family.inputs()
    graph = symbolic_trace(model)
    kept = {name for name in model.state_dict() if "preconditioner" in name}
    assert kept
    assert kept <= set(graph.state_dict())
    assert {name for name, _ in graph.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert not any("__module__" in vars(module) for module in model.modules())
    assert relative_error(trained_a_little(graph, x)(x), trained_a_little(model, x)(x)) <= 1e-5


@pytest.mark.parametrize("name", ["vit", "swin", "torchvision swin"])
def test_copies_and_files_of_a_graph(name: str) -> None:
    family = FAMILIES[name]
    graph = symbolic_trace(family.converted())
    buffer = io.BytesIO()
    torch.save(graph, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(graph), torch.load(buffer, weights_only=False), symbolic_trace(graph)):
        assert_is_converted(again(family.inputs()), family, within=1e-6)


def test_a_graph_is_compiled_and_exported() -> None:
    torch._dynamo.reset()
    family = FAMILIES["vit"]
    graph = symbolic_trace(family.converted())
    assert_is_converted(torch.compile(graph, backend="eager", fullgraph=True)(family.inputs()), family)
    program = torch.export.export(graph, (family.inputs(),)).run_decompositions()
    assert_is_converted(program.module()(family.inputs()), family)


@pytest.mark.parametrize(
    ("name", "node"), [("vit", "attend"), ("swin", "preconditioner"), ("torchvision maxvit", "preconditioner")]
)
def test_what_leaves_a_preconditioner_is_a_node(name: str, node: str) -> None:
    """Its rows are unit rows."""
    family = FAMILIES[name]
    model = family.converted()
    paths = [
        path.removesuffix("preconditioner") + node
        for path, _ in model.named_modules()
        if path.endswith("preconditioner")
    ]
    features = feature_extraction.create_feature_extractor(model, paths)(family.inputs())
    assert len(features) == len(paths) > 0
    for rows in features.values():
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1]))


@pytest.mark.parametrize("name", ["vit", "swin", "davit", "xcit"])
def test_timms_own_ways_to_features(name: str) -> None:
    family = FAMILIES[name]
    model, x = family.converted(), family.inputs()
    last, maps = model.forward_intermediates(x)
    assert_is_converted(model.forward_head(last), family, within=1e-6)
    wrapped = FeatureGetterNet(copy.deepcopy(model), out_indices=(-1,))
    torch.testing.assert_close(wrapped(x)[0], maps[-1])


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "maxvit_rmlp_pico_rw_256", "vit_tiny_patch16_224"])
def test_models_made_for_their_features_are_converted(name: str) -> None:
    """`features_only=True` wraps the model; the conversion goes inside, and features change by it."""
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, img_size=64, **({"window_size": 2} if "swin" in name else {}))
    x = torch.randn(1, 3, 64, 64)
    model.eval()
    plain = model(x)[-1]
    report = precondition_(model, strict=True)
    report.verify(x)
    assert relative_error(model(x)[-1], plain) > 1e-3
    restore_(model)
    assert torch.equal(model(x)[-1], plain)


@pytest.mark.parametrize("name", ["vit", "swin", "xcit"])
def test_quantizing_a_graph_keeps_the_preconditioners(name: str) -> None:
    """It replaces projections, and with them every hook that was on them."""
    from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    family = FAMILIES[name]
    x = family.inputs()
    mapping = QConfigMapping().set_object_type(nn.Linear, default_dynamic_qconfig)
    mapping = mapping.set_object_type(nn.functional.linear, default_dynamic_qconfig)
    quantized = convert_fx(prepare_fx(family.converted(), mapping, (x,)))
    assert_is_converted(quantized(x), family, within=0.05)


def test_a_graph_is_not_converted() -> None:
    """Its attention is a node and no module; where attention is still a module, it is."""
    plain, x = FAMILIES["vit"].plain(), FAMILIES["vit"].inputs()
    for graph in (symbolic_trace(plain), torch.export.export(plain, (x,)).module()):
        assert isinstance(graph, GraphModule)
        with pytest.raises(ValueError, match=r"call precondition_ or restore_ first, then trace or export"):
            precondition_(nn.Sequential(graph))
    with pytest.raises(ValueError, match=r"call precondition_ or restore_ first, then trace or export"):
        restore_(symbolic_trace(FAMILIES["swin"].converted()))
    family = FAMILIES["encoder"]
    graph = symbolic_trace(family.plain())
    precondition_(graph, include=INCLUDE)
    assert_is_converted(graph(family.inputs()), family, within=1e-6)
