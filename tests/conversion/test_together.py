"""Converted models in the hands of other tools: none of them may lose a preconditioner, or apply it twice."""

import copy
from pathlib import Path

import peft
import pytest
import safetensors.torch
import timm
import torch
import torch.distributed as dist
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import fully_shard

from preconditioned_attention import precondition_, restore_
from preconditioned_attention.conversion import ConversionReport
from preconditioned_attention.layers.observation import OutputObserver, attach_observer
from tests.helpers.explicit import relative_error

MODELS = {"class swap": "vit_tiny_patch16_224", "pre-hook": "vit_relpos_base_patch16_224"}
IMAGES = torch.randn(2, 3, 32, 32)


def plain(mechanism: str) -> nn.Module:
    small = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
    model = timm.create_model(MODELS[mechanism], **small).eval()
    for block in model.blocks:  # small layer scales would hide what attention does
        if hasattr(block.ls1, "gamma"):
            nn.init.ones_(block.ls1.gamma)
    return model


def converted(mechanism: str) -> tuple[nn.Module, ConversionReport]:
    model = plain(mechanism)
    report = precondition_(model)
    assert {entry.mechanism for entry in report.entries} == {mechanism}
    return model, report


@pytest.fixture(params=MODELS)
def mechanism(request: pytest.FixtureRequest) -> str:
    return request.param


def test_dynamic_quantization(mechanism: str) -> None:
    """It replaces the projections, in a copy; the rows that reach them are still unit rows."""
    model, _ = converted(mechanism)
    expected = model(IMAGES)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    seen: list[Tensor] = []
    for block in quantized.blocks:
        attach_observer(block.attn.preconditioner, OutputObserver(lambda out: seen.append(out.norm(dim=-1))))
    assert relative_error(quantized(IMAGES), expected) < 0.2
    assert len(seen) == 2
    assert all(torch.allclose(norms, torch.ones_like(norms)) for norms in seen)


def test_gradient_checkpointing(mechanism: str) -> None:
    model, report = converted(mechanism)
    parameter = model.patch_embed.proj.weight
    (expected,) = torch.autograd.grad(model(IMAGES).square().sum(), parameter)
    model.set_grad_checkpointing()
    (actual,) = torch.autograd.grad(model(IMAGES).square().sum(), parameter)
    assert relative_error(actual, expected) <= 1e-5
    report.verify(IMAGES)


def test_intermediate_features(mechanism: str) -> None:
    model, report = converted(mechanism)
    blocks = [
        model.forward_intermediates(IMAGES, intermediates_only=True, norm=True)[-1],
        model.forward_features(IMAGES),
    ]
    assert relative_error(blocks[0].flatten(2).mT, blocks[1][:, -4:]) <= 1e-6
    report.verify(IMAGES, through=lambda x: model.forward_intermediates(x))


def test_reparameterised_models() -> None:
    """What timm fuses lies beside the attachment points."""
    model = timm.create_model("fastvit_mci0", num_classes=3).eval()
    report = precondition_(model)
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)
    fused = reparameterize_model(model, inplace=True)
    assert fused is model
    report.verify(images)
    assert relative_error(fused(images), expected) <= 1e-3


def test_safetensors(mechanism: str, tmp_path: Path) -> None:
    model, _ = converted(mechanism)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    again, _ = converted(mechanism)
    timm.models.load_checkpoint(again, str(tmp_path / "model.safetensors"))
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_fully_sharded(mechanism: str, tmp_path: Path) -> None:
    """FSDP2 swaps classes itself, and its hooks stand beside ours; one process is enough to see that."""
    model, report = converted(mechanism)
    expected = model(IMAGES)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        assert relative_error(model(IMAGES), expected) <= 1e-6
        report.verify(IMAGES)
        model(IMAGES).sum().backward()
    finally:
        dist.destroy_process_group()


def test_checkpoint_wrappers(mechanism: str) -> None:
    """They hand on the attributes of what they hold, and are not taken for it."""
    model, report = converted(mechanism)
    expected = model(IMAGES)
    kind = type(model.blocks[0].attn)
    apply_activation_checkpointing(model, check_fn=lambda module: type(module) is kind)
    assert relative_error(model(IMAGES), expected) <= 1e-6
    model(IMAGES).sum().backward()
    report.verify(IMAGES)
    assert restore_(model) == 2
    again = precondition_(model)
    assert [entry.path for entry in again.converted] == [f"blocks.{i}.attn._checkpoint_wrapped_module" for i in (0, 1)]
    assert relative_error(model(IMAGES), expected) <= 1e-6


def lora(model: nn.Module) -> nn.Module:
    return peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["qkv", "proj"], r=2, init_lora_weights=False)
    ).eval()


def test_lora_after_a_class_swap() -> None:
    """Both branches of an adapted projection see unit rows, and merging them changes nothing."""
    model, report = converted("class swap")
    adapted = lora(model)
    report.verify(IMAGES, through=adapted)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.proj.lora_A.default.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    expected = adapted(IMAGES)
    norms = torch.stack(seen).unflatten(-1, (3, 8)).norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms))
    merged = adapted.merge_and_unload()
    report.verify(IMAGES, through=merged)
    assert relative_error(merged(IMAGES), expected) <= 1e-5


def test_lora_before_a_class_swap() -> None:
    adapted = lora(plain("class swap"))
    report = precondition_(adapted)
    report.verify(IMAGES)
    expected = adapted(IMAGES)
    merged = adapted.merge_and_unload()
    report.verify(IMAGES, through=merged)
    assert relative_error(merged(IMAGES), expected) <= 1e-5


@pytest.mark.parametrize("compiled", [None, False, True], ids=["eager", "compiled", "fullgraph"])
def test_lora_round_a_hooked_projection_is_refused(compiled: bool | None) -> None:
    """The hook would stay on the inner layer, and LoRA's branch would see the raw rows."""
    model, _ = converted("pre-hook")
    adapted = lora(model)
    forward = adapted if compiled is None else torch.compile(adapted, backend="eager", fullgraph=compiled)
    with pytest.raises(RuntimeError, match="its 'proj' has been replaced since the conversion, by LoRA"):
        forward(IMAGES)
    restore_(model)
    precondition_(model).verify(IMAGES)


def test_merging_lora_under_a_hooked_projection_is_refused() -> None:
    adapted = lora(plain("pre-hook"))
    report = precondition_(adapted)
    report.verify(IMAGES)
    expected = adapted(IMAGES)
    merged = adapted.merge_and_unload()
    with pytest.raises(RuntimeError, match="by LoRA or its merging"):
        merged(IMAGES)
    restore_(merged)
    precondition_(merged)
    assert relative_error(merged(IMAGES), expected) <= 1e-5


def test_lora_of_multihead_attention() -> None:
    """PEFT merges into the module that it holds, and calls it; the merged module comes back as it was."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True, dropout=0.0), 2).eval()
    report, x = precondition_(model), torch.randn(3, 5, 16)
    before = model(x)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["self_attn"], r=2, init_lora_weights=False)
    ).eval()
    expected = adapted(x)
    assert relative_error(expected, before) > 1e-3
    report.verify(x, through=adapted)
    merged = adapted.merge_and_unload()
    assert relative_error(merged(x), expected) <= 1e-5
    report.verify(x, through=merged)
    restore_(merged)
    assert relative_error(merged(x), expected) > 1e-3


def test_data_parallel(mechanism: str, tmp_path: Path) -> None:
    """DistributedDataParallel, whose gradients are those of the model alone; one process is enough to see that."""
    model, report = converted(mechanism)
    parameter = model.patch_embed.proj.weight
    (expected,) = torch.autograd.grad(model(IMAGES).square().sum(), parameter)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        parallel(IMAGES).square().sum().backward()
        report.verify(IMAGES, through=parallel)
    finally:
        dist.destroy_process_group()
    assert relative_error(parameter.grad, expected) <= 1e-5


def test_export(mechanism: str, tmp_path: Path) -> None:
    """The exported program computes what the model does, and comes back from a file without this package's classes."""
    model, _ = converted(mechanism)
    expected = model(IMAGES)
    program = torch.export.export(model, (IMAGES,))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert relative_error(loaded.module()(IMAGES), expected) <= 1e-6
    assert relative_error(loaded.module()(IMAGES), plain(mechanism)(IMAGES)) > 1e-3


def test_loading_weights_first(mechanism: str, tmp_path: Path) -> None:
    """The order that the documentation asks for: a plain checkpoint into a plain model, then the conversion."""
    source = plain(mechanism)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "plain.safetensors")
    expected_model = copy.deepcopy(source)
    precondition_(expected_model)
    model = plain(mechanism)
    timm.models.load_checkpoint(model, str(tmp_path / "plain.safetensors"))
    precondition_(model)
    assert torch.equal(model(IMAGES), expected_model(IMAGES))


def test_a_checkpoint_of_the_other_form_is_noticed(mechanism: str, tmp_path: Path) -> None:
    """timm's loader stops where a preconditioned checkpoint meets a plain model, and the reverse warns."""
    model, _ = converted(mechanism)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="requires_preconditioned_attention"):
        timm.models.load_checkpoint(plain(mechanism), str(tmp_path / "model.safetensors"))
    safetensors.torch.save_file(plain(mechanism).state_dict(), tmp_path / "plain.safetensors")
    with pytest.warns(UserWarning, match="does not say that it was trained with preconditioned attention"):
        timm.models.load_checkpoint(model, str(tmp_path / "plain.safetensors"))
