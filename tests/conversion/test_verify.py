import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion import VerificationError
from preconditioned_attention.layers import preconditioner


def vit(**options) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=3, **options).eval()


IMAGES = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("options", [{}, {"gradient": "stop"}, {"gain": 0.25}, {"backend": "composition"}], ids=str)
def test_a_converted_model_passes_and_is_left_as_it_was(options: dict) -> None:
    model = vit()
    report = precondition_(model, PreconditionConfig(**options))
    before = model(IMAGES)
    results = report.verify(IMAGES)
    assert [result.path for result in results] == ["blocks.0.attn", "blocks.1.attn"]
    assert all((result.calls, result.rows, result.zero_rows) == (1, 2 * 3 * 5, 0) for result in results)
    assert all(0 < result.allowed < 1e-6 for result in results)
    assert torch.equal(model(IMAGES), before)
    assert not any(module.preconditioner.observers for module in (model.blocks[0].attn, model.blocks[1].attn))


def test_half_precision_and_negative_gains_pass() -> None:
    model = vit().bfloat16()
    report = precondition_(model, PreconditionConfig(gain=-2.0))
    report.verify(IMAGES.bfloat16())


def test_zero_rows_are_counted() -> None:
    attention = nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    report = precondition_(attention)
    x = torch.randn(1, 4, 12)
    x[:, :, :] = 0
    (result,) = report.verify(x, x, x)
    assert result.zero_rows == result.rows == 12


def test_an_attachment_that_is_passed_by_is_found() -> None:
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = vit()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner.blocks[0](self.inner.patch_embed(x))

    model = Bypass()
    report = precondition_(model)
    with pytest.raises(VerificationError, match=r"1 of 2 attachments failed:\n  inner.blocks.1.attn: did not fire"):
        report.verify(IMAGES)


def test_rows_of_another_length_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    report = precondition_(model)
    compute = preconditioner.preconditioned_attention
    monkeypatch.setattr(preconditioner, "preconditioned_attention", lambda *args, **kw: compute(*args, **kw) * 1.001)
    with pytest.raises(VerificationError, match=r"a row's norm is off by 0\.001, and rounding explains"):
        report.verify(IMAGES)


def test_not_a_number_is_found() -> None:
    model = vit()
    report = precondition_(model)
    with pytest.raises(VerificationError, match="off by inf"):
        report.verify(torch.full_like(IMAGES, torch.nan))


def test_a_form_that_was_compiled_before_is_found() -> None:
    """A stale trace goes past the attachments; a fresh one does not."""
    model = vit()
    stale = torch.jit.trace(model, IMAGES)
    report = precondition_(model)
    with pytest.raises(VerificationError, match="2 of 2 attachments failed"):
        report.verify(IMAGES, through=stale)
    torch.compiler.reset()
    fresh = torch.compile(model, backend="eager")
    assert [result.calls for result in report.verify(IMAGES, through=fresh)] == [1, 1]


def test_the_model_must_be_there_and_converted() -> None:
    model = vit()
    report = precondition_(model)
    restore_(model)
    with pytest.raises(ValueError, match=r"not preconditioned any more: 'blocks\.0\.attn', 'blocks\.1\.attn'"):
        report.verify(IMAGES)
    assert pickle.loads(pickle.dumps(report)).entries == report.entries
    with pytest.raises(ValueError, match="is gone"):
        pickle.loads(pickle.dumps(report)).verify(IMAGES)
    del model
    with pytest.raises(ValueError, match="is gone"):
        copy.deepcopy(report).verify(IMAGES)
