import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from tests.helpers.ragged import KEYS, QUERIES, ragged

FORWARD = torch.ops.preconditioned_attention.varlen_flash.default
BACKWARD = torch.ops.preconditioned_attention.varlen_flash_backward.default


@pytest.mark.parametrize("is_causal", [False, True], ids=["whole", "causal"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype, is_causal: bool) -> None:
    qkv, starts = ragged(dtype=dtype)
    inputs = (*(x.detach() for x in qkv), *starts)
    options = (max(QUERIES), max(KEYS), is_causal, None)
    opcheck(FORWARD, (*inputs, *options))
    rows, lse = FORWARD(*inputs, *options)
    opcheck(BACKWARD, (torch.randn_like(rows), *inputs, rows, lse, *options))


def test_shapes_and_strides_are_known_without_values() -> None:
    """Also of inputs that are not contiguous: results are laid out tokens first, heads second."""
    (q, k, v), starts = ragged(shared=4)
    q = q.detach().transpose(0, 1).contiguous().transpose(0, 1)
    real = FORWARD(q, k, v, *starts, 5, 7, True, None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = FORWARD(q, k, v, *starts, 5, 7, True, None)
    assert [(x.shape, x.stride(), x.dtype) for x in fake] == [(x.shape, x.stride(), x.dtype) for x in real]
    assert fake[0].is_contiguous()
