"""Second derivatives, against an independent implementation of the definition."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import functional, gradgradcheck
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from preconditioned_attention import (
    PreconditionConfig,
    equilibrate,
    precondition_,
    preconditioned_attention,
    preconditioned_varlen_attention,
)
from preconditioned_attention.ops import AttentionInputs, PackedInputs
from preconditioned_attention.ops.flash.cuda import FLASH_CUDA
from preconditioned_attention.ops.flash.cudnn import CUDNN
from preconditioned_attention.ops.flash.efficient import EFFICIENT
from preconditioned_attention.ops.flash.packed_cuda import PACKED_FLASH_CUDA
from tests.helpers.dtensor_worker import connect, free_port
from tests.helpers.emulated_cuda import emulated
from tests.helpers.emulated_varlen import emulated_varlen
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error
from tests.helpers.ragged import KEYS, QUERIES, explicit_ragged, ragged

GRADIENTS = ["full", "stop"]
CAUSAL = torch.ones(3, 5, dtype=torch.bool).tril()
BOOLEAN = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
ADDITIVE = torch.linspace(-2, 1, 15, dtype=torch.float64).view(1, 1, 3, 5)
CASES = {
    "plain": ({}, None),
    "scale": ({"scale": -0.7}, None),
    "causal": ({"is_causal": True}, CAUSAL),
    "boolean, a row without keys, one with one": ({"attn_mask": BOOLEAN}, BOOLEAN),
    "additive": ({"attn_mask": ADDITIVE}, ADDITIVE),
}
Attention = Callable[..., Tensor]


def inputs(heads: int = 4, shared: int = 4, queries: int = 3, keys: int = 5, d: int = 4) -> list[Tensor]:
    shapes = [(2, heads, queries, d), (2, shared, keys, d), (2, shared, keys, d)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def explicit(gradient: str, mask: Tensor | None = None, scale: float | None = None) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = mask) -> Tensor:
        return diagonal_product(attention_rows(q, k, v, mask, scale), constant=gradient == "stop")

    return attend


def penalty(attend: Attention, leaves: Sequence[Tensor], times: int = 1) -> list[Tensor]:
    """Gradients of the squared length of the gradients, of that of those, and so on."""
    value = attend(*leaves).pow(3).sum()
    for _ in range(times):
        value = sum(g.square().sum() for g in torch.autograd.grad(value, leaves, create_graph=True))
    return list(torch.autograd.grad(value, leaves))


def check(actual: Sequence[Tensor], expected: Sequence[Tensor], bound: float = 1e-12) -> None:
    assert any(wanted.norm() > 0 for wanted in expected)
    for got, wanted in zip(actual, expected, strict=True):
        assert (got - wanted).norm() <= bound * max(wanted.norm().item() for wanted in expected)


@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("case", CASES)
def test_a_gradient_penalty_and_one_of_that(case: str, gradient: str, shared: int) -> None:
    options, mask = CASES[case]
    leaves = inputs(shared=shared)

    def attend(*qkv: Tensor) -> Tensor:
        return preconditioned_attention(*qkv, **options, enable_gqa=True, gradient=gradient, backend="flash")

    expected = explicit(gradient, mask, options.get("scale"))
    for times in (1, 2):
        check(penalty(attend, leaves, times), penalty(expected, leaves, times))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("what", ["hessian", "vectorized hessian", "hvp", "vhp", "jacobian of the gradient"])
def test_what_autograd_functional_computes(what: str, gradient: str) -> None:
    leaves = tuple(x.detach() for x in inputs(heads=1, shared=1, queries=2, keys=3))
    along = tuple(torch.randn_like(x) for x in leaves)

    def result(attend: Attention) -> list[Tensor]:
        def loss(*qkv: Tensor) -> Tensor:
            return attend(*qkv).pow(3).sum()

        if what in ("hvp", "vhp"):
            return list(getattr(functional, what)(loss, leaves, along)[1])
        if what == "jacobian of the gradient":
            blocks = functional.jacobian(lambda *x: torch.autograd.grad(loss(*x), x, create_graph=True), leaves)
        else:
            blocks = functional.hessian(loss, leaves, vectorize=what == "vectorized hessian")
        return [block for row in blocks for block in row]

    check(result(lambda *x: preconditioned_attention(*x, gradient=gradient)), result(explicit(gradient)))


def test_gradgradcheck_with_a_gain_and_a_learned_mask() -> None:
    q, k, v = inputs(heads=2, shared=1, queries=2, keys=3)
    gain = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda *x: preconditioned_attention(*x[:3], enable_gqa=True, gain=x[3]), (q, k, v, gain))
    mask = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):  # without a re-normalized kernel on the CPU it is as in plain attention
        assert gradgradcheck(lambda *x: preconditioned_attention(*x, enable_gqa=True), (q, k, v, mask))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_inputs_that_depend_on_each_other(gradient: str) -> None:
    """Keys that are the queries, values that are computed from both, and one that needs no gradient."""
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    constant = torch.randn_like(x).detach()
    ours = partial(preconditioned_attention, gradient=gradient)
    for build in (lambda x: (x, x, x), lambda x: (x, x.sin(), x.sin().cos()), lambda x: (x, constant, x[:, :1])):

        def results(attend: Attention, build: Callable[[Tensor], tuple[Tensor, ...]] = build) -> list[Tensor]:
            return penalty(lambda x: attend(*(y.expand(x.shape) for y in build(x))), [x])

        check(results(ours), results(explicit(gradient)))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_backward_that_names_its_inputs(gradient: str) -> None:
    results = []
    for attend in (lambda *x: preconditioned_attention(*x, gradient=gradient), explicit(gradient)):
        torch.manual_seed(1)
        leaves = inputs()
        attend(*leaves).pow(3).sum().backward(inputs=leaves, create_graph=True)
        first = [x.grad for x in leaves]
        results.append(torch.autograd.grad(sum(g.cos().sum() for g in first), leaves))
    check(*results)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_batched_gradients_that_are_differentiated(gradient: str) -> None:
    leaves = inputs()
    weights = torch.randn(3, 2, 4, 3, 4, dtype=torch.float64)

    def attend(*x: Tensor) -> Tensor:
        return preconditioned_attention(*x, gradient=gradient)

    batched = torch.autograd.grad(attend(*leaves), leaves, weights, is_grads_batched=True, create_graph=True)
    expected = explicit(gradient)(*leaves)
    parts = [torch.autograd.grad(expected, leaves, w, create_graph=True) for w in weights]
    stacked = [torch.stack(part) for part in zip(*parts, strict=True)]
    check(batched, stacked)
    check(*(torch.autograd.grad(sum(x.cos().sum() for x in grads), leaves) for grads in (batched, stacked)))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_under_activation_checkpointing(gradient: str) -> None:
    def attend(*qkv: Tensor) -> Tensor:
        return preconditioned_attention(*qkv, gradient=gradient)

    leaves = inputs()
    check(penalty(lambda *x: checkpoint(attend, *x, use_reentrant=False), leaves), penalty(attend, leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding(dtype: torch.dtype) -> None:
    """Against what rounding the gradients of plain attention does to its second derivative, twice that."""
    exact = inputs()
    low = [x.detach().to(dtype).requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in low]
    errors = {}
    for name, attend, wanted in (
        ("plain", lambda *x: F.scaled_dot_product_attention(*x), lambda *x: attention_rows(*x)),
        ("ours", preconditioned_attention, explicit("full")),
    ):
        with sdpa_kernel([SDPBackend.MATH] if name == "plain" else [SDPBackend.FLASH_ATTENTION]):
            actual = penalty(attend, low)
        pairs = zip(actual, penalty(wanted, exact), strict=True)
        errors[name] = max(relative_error(got.double(), want) for got, want in pairs)
    assert errors["ours"] <= 4 * errors["plain"] + torch.finfo(dtype).eps


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_packed_sequences(gradient: str, is_causal: bool) -> None:
    leaves, starts = ragged()
    options = {"is_causal": is_causal, "gradient": gradient}

    def attend(*qkv: Tensor) -> Tensor:
        return preconditioned_varlen_attention(*qkv, *starts, 5, 7, enable_gqa=True, **options)

    check(penalty(attend, leaves), penalty(lambda *qkv: explicit_ragged(*qkv, *starts, **options), leaves))


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_nested_tensors(gradient: str, layout: torch.layout) -> None:
    """Jagged ones PyTorch does not differentiate twice, whatever was done to them; it says so."""
    leaves = [torch.randn(length, 2, 4, dtype=torch.float64, requires_grad=True) for length in (3, 4)]

    def attend(*x: Tensor) -> Tensor:
        nested = torch.nested.as_nested_tensor(list(x), layout=layout).transpose(1, 2)
        return torch.cat(
            [y.transpose(0, 1) for y in preconditioned_attention(*[nested] * 3, gradient=gradient).unbind()]
        )

    def expected(*x: Tensor) -> Tensor:
        starts = torch.tensor([0, 3, 7])
        return explicit_ragged(*[torch.cat(x)] * 3, starts, starts, gradient=gradient)

    if layout == torch.jagged:
        with pytest.raises((NotImplementedError, RuntimeError)):
            penalty(attend, leaves)
    else:
        check(penalty(attend, leaves), penalty(expected, leaves))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_distributed_tensors(gradient: str) -> None:
    connect(0, 1, free_port())
    try:
        mesh = init_device_mesh("cpu", (1,))
        leaves, whole = inputs(), partial(DTensor.from_local, device_mesh=mesh, placements=[Shard(1)])
        try:
            penalty(lambda x: whole(whole(x).to_local().sin()).to_local(), leaves[:1])
        except RuntimeError:
            pytest.skip("this PyTorch (2.11) does not differentiate what goes in and out of a DTensor twice")

        def attend(*x: Tensor) -> Tensor:
            return preconditioned_attention(*map(whole, x), gradient=gradient).to_local()

        check(penalty(attend, leaves), penalty(explicit(gradient), leaves))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_equilibrate_has_every_derivative(gradient: str) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    gain = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)

    def expected(x: Tensor, gain: Tensor) -> Tensor:
        return diagonal_product(x, constant=gradient == "stop", gain=gain)

    for times in (1, 2):
        actual = penalty(lambda x, gain: equilibrate(x, gradient=gradient, gain=gain), [x, gain], times)
        check(actual, penalty(expected, [x, gain], times))


def call(q: Tensor, k: Tensor, v: Tensor, **options: object) -> AttentionInputs:
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": True}
    return AttentionInputs(q=q, k=k, v=v, **defaults | {"gradient": "full", "gain": None, "eps": 1e-12} | options)


@pytest.mark.parametrize("d", [4, 8], ids=["filled up", "as it is"])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kernel", [FLASH_CUDA, EFFICIENT, CUDNN], ids=["flash", "efficient", "cudnn"])
def test_every_cuda_kernel(kernel, gradient: str, d: int) -> None:
    leaves = inputs(shared=2, d=d)
    options = {"is_causal": True, "gradient": gradient}
    with emulated():
        actual = penalty(lambda *qkv: kernel.attend(call(*qkv, **options)), leaves)
    check(actual, penalty(explicit(gradient, CAUSAL), leaves))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_bias_of_memory_efficient_attention(gradient: str) -> None:
    leaves = [*inputs(), torch.randn(4, 1, 5, dtype=torch.float64, requires_grad=True)]
    with emulated():
        actual = penalty(lambda q, k, v, b: EFFICIENT.attend(call(q, k, v, attn_mask=b, gradient=gradient)), leaves)
    check(actual, penalty(explicit(gradient), leaves))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_packed_cuda_kernel(gradient: str) -> None:
    leaves, starts = ragged(d=12)

    def attend(*qkv: Tensor) -> Tensor:
        positions = {"cu_seq_q": starts[0], "cu_seq_k": starts[1], "max_q": max(QUERIES), "max_k": max(KEYS)}
        return PACKED_FLASH_CUDA.attend(PackedInputs(inputs=call(*qkv, gradient=gradient, is_causal=True), **positions))

    with emulated_varlen():
        actual = penalty(attend, leaves)
    check(actual, penalty(lambda *qkv: explicit_ragged(*qkv, *starts, is_causal=True, gradient=gradient), leaves))


@pytest.mark.parametrize("wanted", [0, 1, 2], ids="qkv")
@pytest.mark.parametrize("kernel", [FLASH_CUDA, EFFICIENT, CUDNN], ids=["flash", "efficient", "cudnn"])
def test_a_mask_that_a_cuda_kernel_drew_is_refused_where_it_is_differentiated(kernel, wanted: int) -> None:
    leaves = inputs(d=8)
    c = call(*leaves, dropout_p=0.5)
    with emulated():
        first = torch.autograd.grad(kernel.attend(c).sum(), leaves)
        again = torch.autograd.grad(kernel.attend(c).sum(), leaves, create_graph=True)
    check(again, first, bound=0.0)
    for grad in again:
        with pytest.raises(RuntimeError, match="dropout_p > 0 cannot be differentiated"):
            torch.autograd.grad(grad.sum(), leaves[wanted], retain_graph=True)


def test_a_packed_mask_that_a_cuda_kernel_drew() -> None:
    leaves, starts = ragged()
    packed = PackedInputs(
        inputs=call(*leaves, dropout_p=0.5), cu_seq_q=starts[0], cu_seq_k=starts[1], max_q=max(QUERIES), max_k=max(KEYS)
    )
    with emulated_varlen():
        (grad,) = torch.autograd.grad(PACKED_FLASH_CUDA.attend(packed).sum(), leaves[2], create_graph=True)
        with pytest.raises(RuntimeError, match="dropout_p > 0 cannot be differentiated"):
            torch.autograd.grad(grad.sum(), leaves[0])


@pytest.mark.parametrize("backend", ["composition", "auto"])
def test_plain_attentions_own_error_where_it_has_no_second_derivative(backend: str) -> None:
    """A composition, and `auto` under torch.func, have what plain attention has; written out it has everything."""
    q, k, v = (x.detach() for x in inputs(heads=1, shared=1))

    def loss(q: Tensor) -> Tensor:
        return preconditioned_attention(q, k, v, backend=backend).pow(3).sum()

    def second(loss: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.func.jacrev(torch.func.jacrev(loss))(q)

    expected = second(lambda q: explicit("full")(q, k, v).pow(3).sum())
    with pytest.raises(RuntimeError, match="is not implemented"):
        second(loss)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.hessian(loss)(q)
    with sdpa_kernel(SDPBackend.MATH):
        check([second(loss)], [expected])
        check([torch.func.hessian(loss)(q)], [expected])
        check(
            [torch.func.jvp(torch.func.grad(loss), (q,), (k[:, :, :3],))[1]],
            [(expected * k[:, :, :3]).sum((-4, -3, -2, -1))],
        )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_compiled_backward_pass_says_that_it_cannot(gradient: str, backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(preconditioned_attention, fullgraph=True, backend=backend)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        penalty(lambda *x: compiled(*x, gradient=gradient), inputs())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_converted_encoder_layer(gradient: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    precondition_(layer, PreconditionConfig(gradient=gradient, gain=0.5))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def model(*values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    actual = penalty(model, list(parameters.values()))
    with sdpa_kernel(SDPBackend.MATH):
        check(actual, penalty(model, list(parameters.values())))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_converted_language_models(name: str, gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hessian-vector products of all parameters, grouped heads and a causal mask among them."""
    transformers = pytest.importorskip("transformers")
    from preconditioned_attention.conversion.adapters.transformers import sdpa

    monkeypatch.setattr(sdpa, "_TEXT_IS_KNOWN", True)  # the fused form, whichever release is installed
    sizes = {
        "Llama": {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2},
        "GPT2": {"n_embd": 16, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    }[name]
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "vocab_size": 20, "num_hidden_layers": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, **tokens)
    model = transformers.AutoModelForCausalLM.from_config(config).double()
    precondition_(model, PreconditionConfig(gradient=gradient))
    ids, parameters = torch.randint(20, (2, 6)), list(model.parameters())
    along = [torch.randn_like(p) for p in parameters]

    def product() -> tuple[Tensor, ...]:
        first = torch.autograd.grad(model(ids).logits.pow(3).sum(), parameters, create_graph=True)
        return torch.autograd.grad(first, parameters, along)

    actual = product()
    with sdpa_kernel(SDPBackend.MATH):
        check(actual, product())
