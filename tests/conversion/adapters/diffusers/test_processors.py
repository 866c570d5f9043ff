import importlib
import pkgutil

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import precondition_, restore_
from tests.helpers.explicit import diagonal_product, relative_error
from tests.helpers.oracle import jitter_, normalizing_inside

pytest.importorskip("diffusers")

import diffusers

from preconditioned_attention.conversion.adapters.diffusers.processors import (
    is_processor,
    unsupported_processor_reason,
)
from preconditioned_attention.conversion.adapters.diffusers.tables import KNOWN_PROCESSORS
from preconditioned_attention.conversion.adapters.diffusers.unsupported import UNSUPPORTED_PROCESSORS
from preconditioned_attention.conversion.class_names import class_name
from tests.helpers.diffusers_modules import CASES, SINGLE, TRANSPOSED, build, found, normal

SLICE = ["LTX 2", "Motif, joint", "Mochi", "Hunyuan Video, single stream", "Cosmos VAE, time", "VidTok", "IF, pooling"]


def check(name: str) -> None:
    module, call = build(name)
    jitter_(module, 0.3)

    def run() -> Tensor:
        out = module(**call)
        return out if isinstance(out, Tensor) else torch.cat([x.flatten() for x in out if x is not None])

    plain = run()
    with normalizing_inside(module, type(module), channels=name in TRANSPOSED) as widths:
        expected = run()
    report = precondition_(module, include=("softmax", "pooling"), strict=True)
    (entry,) = report.entries
    assert set(widths) == {entry.head_dim}
    assert relative_error(run(), expected) <= (1e-5 if name in SINGLE else 1e-10)
    assert relative_error(plain, expected) > 1e-3
    report.verify(**call)
    restore_(module)
    assert torch.equal(run(), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("name", SLICE)
def test_against_attention_that_normalizes_inside(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in SLICE])
def test_more_against_attention_that_normalizes_inside(name: str) -> None:
    check(name)


def processor_classes() -> dict[str, type]:
    """Every processor that diffusers defines."""
    classes: dict[str, type] = {}
    for info in pkgutil.walk_packages(diffusers.models.__path__, "diffusers.models."):
        module = importlib.import_module(info.name)
        own = (cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == info.name)
        classes |= {class_name(cls): cls for cls in own if is_processor(cls)}
    return classes


def test_every_processor_is_known_or_refused() -> None:
    assert not KNOWN_PROCESSORS & set(UNSUPPORTED_PROCESSORS)
    assert set(processor_classes()) == KNOWN_PROCESSORS | set(UNSUPPORTED_PROCESSORS)


def test_why_a_processor_is_refused() -> None:
    class Other:
        pass

    assert "is not known to call" in unsupported_processor_reason(Other())
    assert unsupported_processor_reason(diffusers.models.attention_processor.AttnProcessor()) is None
    guided = diffusers.models.attention_processor.PAGIdentitySelfAttnProcessor2_0()
    assert "perturbed-attention guidance" in unsupported_processor_reason(guided)


@pytest.mark.parametrize(
    ("cls", "arguments", "options", "reason"),
    [
        ("transformers.transformer_ltx2.LTX2Attention", (16,), {"apply_gated_attention": True}, "a gate per head"),
        ("transformers.transformer_krea2.Krea2Attention", (16, 2), {}, "a gate multiplies the entries"),
        ("transformers.transformer_stable_audio3.StableAudio3SelfAttention", (64,), {}, "differential attention"),
        ("autoencoders.autoencoder_same.SAMEAttention", (128,), {}, "differential attention"),
        ("transformers.transformer_wan_animate_2.WanAnimate2Attention", (16, 2), {}, "is called with queries"),
        ("embeddings.HunyuanDiTAttentionPool", (4, 16, 2), {}, "F.multi_head_attention_forward"),
    ],
)
def test_modules_that_are_refused(cls: str, arguments: tuple, options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match="nothing to convert") as error:
        precondition_(found(cls)(*arguments, **options))
    assert reason in str(error.value)


@torch.no_grad()
def test_attention_by_flex_attention() -> None:
    """The watching reference does not see into FlexAttention: the rows are taken before the projection."""
    module = jitter_(
        found("autoencoders.ltx2_diffusion_decoder.LTX2VideoVaeNeighborhoodAttention")(16, (3, 3, 3), head_dim=8), 0.3
    ).double()
    x = normal(2, 3, 3, 4, 16)
    plain, projection = module(x), module.to_out[0]
    module.to_out[0] = nn.Identity()
    rows = diagonal_product(module(x).unflatten(-1, (2, 8))).flatten(-2)
    module.to_out[0] = projection
    precondition_(module, strict=True)
    assert relative_error(module(x), projection(rows)) <= 1e-10
    assert relative_error(plain, projection(rows)) > 1e-3
    restore_(module)
    assert torch.equal(module(x), plain)
