import copy
import pickle
import types
from collections.abc import Callable

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, vmap

from preconditioned_attention import ConditionMonitor, precondition_, register_adapter, restore_
from preconditioned_attention.conversion import Adapter, HeadShape, registry
from preconditioned_attention.conversion.guards import call_guard
from preconditioned_attention.layers import MultiheadAttention
from tests.helpers.explicit import relative_error

NOT_CALLED = "the preconditioner of this .* was not called in its forward pass"
IMAGES = torch.randn(2, 3, 32, 32)
SEQUENCES = torch.randn(3, 5, 16)


def vit(name: str = "vit_relpos_base_patch16_224", depth: int = 2) -> nn.Module:
    model = timm.create_model(name, img_size=32, depth=depth, embed_dim=24, num_heads=3, num_classes=5)
    for block in model.blocks:  # small layer scales would hide what attention does
        if hasattr(block.ls1, "gamma"):
            nn.init.ones_(block.ls1.gamma)
    return model


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True, dropout=0.0), 2)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=40
    )
    return transformers.BertModel(config)


class OwnLayers(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(MultiheadAttention(16, 2, precondition=None), MultiheadAttention(16, 2, precondition=None))


class Returned(nn.Module):
    """Attention that no adapter of this package knows, and that returns its one head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


@register_adapter(registry.class_name(Returned))
class ReturnedAdapter(Adapter):
    """What a user writes: nothing but attaching and detaching."""

    mechanism = "a user's"

    def shape(self, module: nn.Module) -> HeadShape:
        return HeadShape(1, 16)

    def attach(self, module: nn.Module, preconditioner: nn.Module) -> None:
        module.register_forward_hook(lambda m, args, out: m.preconditioner(out[:, None])[:, 0])

    def detach(self, module: nn.Module) -> None:
        module._forward_hooks.clear()


def rembert() -> nn.Module:
    sizes = {"hidden_size": 24, "input_embedding_size": 24, "output_embedding_size": 24, "intermediate_size": 32}
    return transformers.RemBertModel(
        transformers.RemBertConfig(**sizes, num_hidden_layers=2, num_attention_heads=4, vocab_size=40)
    )


# Mechanism -> a small model, its input, and its second attention.
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "class swap": (encoder, SEQUENCES, "layers.1.self_attn"),
    "pre-hook": (vit, IMAGES, "blocks.1.attn"),
    "forward hook": (rembert, torch.arange(9)[None], "encoder.layer.1.attention.self"),
    "attention interface": (bert, torch.arange(9)[None], "encoder.layer.1.attention.self"),
    "child module": (OwnLayers, SEQUENCES, "1"),
    "a user's": (lambda: nn.Sequential(Returned(), Returned()), SEQUENCES, "1"),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, str]:
    build, given, path = MODELS[request.param]
    model = build().eval()
    report = precondition_(model)
    assert {entry.mechanism for entry in report.entries} == {request.param}
    return model, given, path


def pass_by(attention: nn.Module) -> None:
    """What a patch of an instance does: the forward of the plain module, and no hook of ours on it."""
    plain = copy.deepcopy(attention)
    restore_(plain)
    attention.forward = plain.forward
    for key in [key for key, hook in attention._forward_hooks.items() if not isinstance(hook, call_guard.RequireCall)]:
        del attention._forward_hooks[key]


def run(model: nn.Module, given: Tensor) -> Tensor:
    out = model(given)
    return out if isinstance(out, Tensor) else out[0]


def test_an_attachment_that_does_not_fire_is_an_error_at_the_first_pass(case: tuple[nn.Module, Tensor, str]) -> None:
    model, given, path = case
    model(given)
    pass_by(model.get_submodule(path))
    with pytest.raises(RuntimeError, match=NOT_CALLED):
        model(given)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_code_looks_when_it_is_traced(case: tuple[nn.Module, Tensor, str], fullgraph: bool) -> None:
    model, given, path = case
    torch.compiler.reset()
    expected = run(model, given)
    assert relative_error(run(torch.compile(model, backend="eager", fullgraph=fullgraph), given), expected) <= 1e-5
    pass_by(model.get_submodule(path))
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match=NOT_CALLED):
        torch.compile(model, backend="eager", fullgraph=fullgraph)(given)


def test_copies_are_guarded_and_restored_models_are_not(case: tuple[nn.Module, Tensor, str]) -> None:
    model, given, path = case
    twins = [copy.deepcopy(model)]
    if not isinstance(model[0] if isinstance(model, nn.Sequential) else None, Returned):  # its hook is a lambda
        twins.append(pickle.loads(pickle.dumps(model)))
    for twin in twins:
        pass_by(twin.get_submodule(path))
        with pytest.raises(RuntimeError, match=NOT_CALLED):
            twin(given)
        restore_(twin)
        twin(given)
        assert {type(module._modules) for module in twin.modules()} == {dict}
        hooks = [h for m in twin.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        assert not any(isinstance(hook, call_guard.ExpectCall | call_guard.RequireCall) for hook in hooks)


def test_one_graph_serves_changing_shapes_and_every_layer() -> None:
    torch.compiler.reset()
    model = encoder().eval()
    precondition_(model)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for batch in (3, 4, 5, 6):
        compiled(torch.randn(batch, 5, 16))
    assert counter.frame_count == 2  # static, then dynamic
    for regional, layers, given in ((encoder(), "layers", SEQUENCES), (vit(depth=3).eval(), "blocks", IMAGES)):
        counter = CompileCounter()
        precondition_(regional)
        for layer in regional.get_submodule(layers):
            layer.compile(backend=counter, fullgraph=True)
        with torch.no_grad():
            regional(given)
        assert counter.frame_count == 1


def test_compiled_checkpointing() -> None:
    model = vit().eval()
    precondition_(model)
    parameter = model.patch_embed.proj.weight
    (expected,) = torch.autograd.grad(model(IMAGES).square().sum(), parameter)
    model.set_grad_checkpointing()
    for forward in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        (actual,) = torch.autograd.grad(forward(IMAGES).square().sum(), parameter)
        assert relative_error(actual, expected) <= 1e-5


def test_graph_breaks_inside_an_attention_are_no_false_alarm() -> None:
    torch.compiler.reset()
    model = vit().eval()
    precondition_(model)
    expected = model(IMAGES)
    model.blocks[0].attn.proj.register_forward_pre_hook(lambda module, args: torch._dynamo.graph_break())
    model.blocks[1].attn.register_forward_pre_hook(lambda module, args: torch._dynamo.graph_break())
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        assert relative_error(compiled(IMAGES), expected) <= 1e-5


@pytest.mark.parametrize("part", ["preconditioner", "proj"])
def test_parts_compiled_after_the_conversion_are_no_false_alarm(part: str) -> None:
    model = vit().eval()
    precondition_(model)
    expected = model(IMAGES)
    for block in model.blocks:
        block.attn.get_submodule(part).compile(backend="eager")
    for _ in range(2):
        assert relative_error(model(IMAGES), expected) <= 1e-5


def test_tracers_and_transforms_run_through_it(case: tuple[nn.Module, Tensor, str]) -> None:
    model, given, _ = case
    expected = run(model, given)
    for strict in (False, True):
        program = torch.export.export(model, (given,), strict=strict)
        assert relative_error(run(program.module(), given), expected) <= 1e-5
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    assert relative_error(run(lambda x: functional_call(model, state, (x,)), given), expected) <= 1e-6


def test_vmap_runs_through_it() -> None:
    model = vit().eval()
    precondition_(model)
    out = vmap(lambda image: model(image[None])[0])(IMAGES)
    assert relative_error(out, model(IMAGES)) <= 1e-5


def replica(module: nn.Module) -> nn.Module:
    """As `DataParallel` makes them: attributes and hooks are shared, and hooks hold the original's preconditioner."""
    twin = module._replicate_for_data_parallel()
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {name: replica(child) for name, child in module._modules.items()}
    return twin


def test_replicas_of_data_parallel_share_its_notes(case: tuple[nn.Module, Tensor, str]) -> None:
    model, given, _ = case
    expected = run(model, given)
    assert torch.equal(run(replica(model), given), expected)


def test_layers_of_fx_that_are_leaves_are_no_false_alarm() -> None:
    """A tracer that takes the preconditioner for a leaf never runs its forward."""

    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return name.endswith("preconditioner") or super().is_leaf_module(module, name)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Returned()

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x)

    model = Plain()
    precondition_(model)
    graph = Leaves().trace(model)
    assert "attention_preconditioner" in {node.name for node in graph.nodes}


def test_a_monitor_looks_through_it(case: tuple[nn.Module, Tensor, str]) -> None:
    model, given, path = case
    with ConditionMonitor(model) as monitor:
        model(given)
    assert monitor.records
    restore_(model)
    with ConditionMonitor(model) as monitor:
        model(given)
    assert monitor.records
    assert not hasattr(model.get_submodule(path), "preconditioner")


def test_a_forward_of_another_class_is_named() -> None:
    model = encoder().eval()
    precondition_(model)
    attention = model.layers[1].self_attn
    attention.forward = types.MethodType(nn.MultiheadAttention.forward, attention)
    with pytest.raises(RuntimeError, match=r"MultiheadAttention was not called.*restore_\(model\), and precondition_"):
        model(SEQUENCES)
