"""`preconditioned_attention`: scaled dot-product attention and its preconditioner in one call."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from ._symbolic import not_scriptable
from .config import BackendName, Gradient
from .ops import check_inputs, compute


@not_scriptable
def preconditioned_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    gradient: Gradient = "full",
    gain: Tensor | None = None,
    eps: float | None = None,
    backend: BackendName = "auto",
) -> Tensor:
    r"""`C A` with `A = softmax(scale q k^T + mask) v` and `C = diag(1 / ||A_i||_2)`, one norm per token per head.

    The first eight arguments mean what they mean in :func:`torch.nn.functional.scaled_dot_product_attention`, and
    the result has the shape and dtype that it would have. The keyword-only ones are the method's.

    Args:
        q: ``(B, ..., H, L, d)``.
        k: ``(B, ..., H, S, d)``; with ``enable_gqa`` its heads may be a divisor of ``H``.
        v: ``(B, ..., H, S, d_v)``; with ``enable_gqa`` likewise.
        attn_mask: broadcastable to ``(B, ..., H, L, S)``; boolean (True: attend) or added to the scores. Or
            `torch.nn.attention.bias.causal_upper_left` or `causal_lower_right`.
        dropout_p: dropout of the attention weights. As in PyTorch, applied whenever it is above 0: pass 0.0 in
            evaluation. It comes before the norm.
        is_causal: the causal mask, aligned to the upper left; excludes ``attn_mask``.
        scale: of the scores; None is ``1 / sqrt(d)``.
        enable_gqa: let several query heads share a key and value head.
        gradient: ``"full"`` differentiates through `C`; ``"stop"`` holds it constant in the backward pass.
        gain: None, or one factor per query head, ``(H,)``: `C_ii = g_h / ||A_i||`.
        eps: rows with a norm of at most this stay as they are; fully masked rows stay zero. None: 2**-14 in
            float16, 1e-12 otherwise.
        backend: ``"flash"`` (CPU and CUDA), ``"efficient"`` and ``"cudnn"`` (CUDA): that kernel of PyTorch's,
            re-normalized: a pass over the rows each way, and nothing quadratic; ``"composition"``: the kernel that
            PyTorch picks, then the rows are scaled; ``"reference"``: the definition in plain operations, quadratic in
            memory, for tests. ``"auto"``: the kernel that PyTorch picks (`torch.nn.attention.sdpa_kernel` respected),
            re-normalized where that is possible, otherwise the composition; the log says once why.

    Returns:
        ``(B, ..., H, L, d_v)``, every row of unit norm (times its gain) or, if it was zero, unchanged.

    Raises:
        TypeError, ValueError: an argument does not fit, the tensors do not fit each other, or the backend does not
            support the call; the message says what was expected and what was passed.

    Nested tensors (jagged or strided) and distributed tensors (`torch.distributed.tensor.DTensor`, sharded along batch,
    heads or tokens) are supported too. Inside `torch.distributed.tensor.experimental.context_parallel` a call attends
    to the tokens of all processes.

    Source: H. Saratchandran, "Preconditioned Attention: Enhancing Efficiency in Transformers", AISTATS 2026,
    arXiv 2603.27153.

    Example:
        >>> q = k = v = torch.randn(2, 4, 16, 32)
        >>> preconditioned_attention(q, k, v, is_causal=True).norm(dim=-1).allclose(torch.ones(2, 4, 16))
        True
    """
    for value in (q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa, gradient, gain, eps, backend):
        if isinstance(value, Proxy):  # here and not in `one_call`, which costs a function call more
            arguments = (q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)
            options = {"gradient": gradient, "gain": gain, "eps": eps, "backend": backend}
            recorded: Tensor = handle_torch_function(preconditioned_attention, (value,), *arguments, **options)
            return recorded
    inputs = check_inputs(
        q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa, gradient=gradient, gain=gain, eps=eps
    )
    return compute(inputs, backend)
