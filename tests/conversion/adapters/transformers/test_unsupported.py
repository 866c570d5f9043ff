import importlib

import pytest
import torch
import transformers
import transformers.modeling_utils
from torch import nn

from preconditioned_attention import precondition_
from preconditioned_attention.conversion import registry
from preconditioned_attention.conversion.adapter import UnsupportedAdapter
from preconditioned_attention.conversion.plan import plan_conversion
from preconditioned_attention.conversion.registry import find_adapter
from tests.helpers.transformers_cases import TEXT, Case
from tests.helpers.transformers_modules import attention_class, config

REFUSED = {
    "bailing_hybrid.BailingHybridDeltaAttention": "normalized already",
    "big_bird.BigBirdBlockSparseAttention": "converted as a whole",
    "bigbird_pegasus.BigBirdPegasusBlockSparseAttention": "converted as a whole",
    "diffllama.DiffLlamaAttention": "normalized already",
    "florence2.Florence2VisionChannelAttention": "rows are channels",
    "glm5_next.Glm5NextTextLinearAttention": "normalized already",
    "granite_docling.GraniteDoclingDensityRouter": "averaged before any module is called with them",
    "inkling2.Inkling2BlockAttentionResidual": "residual stream",
    "inkling2_loop.Inkling2LoopBlockAttentionResidual": "residual stream",
    "inkling2_loop.Inkling2LoopMessageAttentionResidual": "residual stream",
    "kimi_linear.KimiLinearDeltaAttention": "normalized already",
    "mgp_str.MgpstrA3Module": "normalized already: no heads, and a layer norm of every row",
    "mobilevitv2.MobileViTV2LinearSelfAttention": "one context vector",
    "muse_spark.MuseSparkTextAttention": "normalized already",
    "qwen2_5_omni.AttentiveStatisticsPooling": "rows of one entry",
    "rwkv.RwkvSelfAttention": "rows of one entry",
    "slanet.SLANetAttentionGRUCell": "recurrent cell",
    "slanext.SLANeXtAttentionGRUCell": "recurrent cell",
    "swiftformer.SwiftFormerEfficientAdditiveAttention": "one context vector",
    "xlstm.xLSTMBackend": "normalized already",
    "yoso.YosoSelfAttention": "normalized already: it scales every head's row to length one",
}

assert list(registry.registered_adapters()), "the adapters are imported, and with them what is no attention"
NO_ATTENTION = sorted(name for name in registry._composites if name.startswith("transformers."))


def test_every_refused_class_is_tested() -> None:
    library = "transformers.models."
    names = {
        name
        for name, a in registry.registered_adapters()
        if isinstance(a, UnsupportedAdapter) and name.startswith(library)
    }
    tested = {f"{c.__module__}.{c.__qualname__}" for c in map(attention_class, REFUSED)}
    assert names == tested


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    cls = attention_class(name)
    adapter = find_adapter(cls.__new__(cls))
    assert REFUSED[name] in adapter.unsupported_reason(cls.__new__(cls))


def test_rows_of_yoso_are_unit_rows_already() -> None:
    """Without its convolution, what it returns has nothing left to equilibrate."""
    settings = {"use_expectation": True, "hash_code_len": 3, "conv_window": None, "use_fast_hash": False}
    settings |= {"num_hash": 2, "lsh_backward": True}
    module = attention_class("yoso.YosoSelfAttention")(config(**settings)).eval()
    (merged,) = module(torch.randn(2, 9, 32), torch.zeros(2, 9))
    norms = merged.unflatten(-1, (4, 8)).norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms))


def test_a_norm_undoes_the_rows_of_the_text_recognizer() -> None:
    module = attention_class("mgp_str.MgpstrA3Module")(config(max_token_length=5)).double().eval()
    with pytest.raises(ValueError, match="layer norm of every row"):
        precondition_(module)
    seen: list[torch.Tensor] = []
    module.norm.register_forward_pre_hook(lambda norm, args: seen.append(args[0]))
    out = module(torch.randn(2, 9, 32).double())[0]
    unit = seen[0] / seen[0].norm(dim=-1, keepdim=True)
    # up to the norm's eps beside the variance of a row
    assert torch.allclose(module.norm(unit * 1e3), out, rtol=1e-2, atol=1e-2)


def test_a_norm_of_every_head_undoes_the_rows_of_muse_spark() -> None:
    """Any scaling of the rows that its norm sees leaves what it returns as it is, up to the norm's eps."""
    settings = transformers.AutoConfig.for_model("muse_spark").get_text_config()
    norm = attention_class("muse_spark.MuseSparkRMSNorm")(eps=settings.rms_norm_eps, with_scale=False).double()
    rows = torch.randn(2, 9, 4, 8, dtype=torch.float64)
    assert torch.allclose(norm(rows * torch.rand(2, 9, 4, 1).add(0.5)), norm(rows), atol=1e-3)


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_what_is_no_attention_exists(name: str) -> None:
    """Fails when a new transformers renames a class: it would be listed as unknown."""
    module, _, cls = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), cls), nn.Module)


@pytest.mark.parametrize(
    ("case", "converted"),
    [
        (Case("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 32, "vocab_size": 40}), 2),
        (Case("flaubert", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 40}), 2),
        (Case("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 40}), 2),
        (Case("tapas", {**TEXT, "type_vocab_sizes": [3, 8, 8, 2, 8, 8, 2]}), 2),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_that_answer_questions_list_their_attention_only(case: Case, converted: int) -> None:
    """Their heads use a softmax and a product for something else."""
    settings = transformers.AutoConfig.for_model(case.model_type, **case.config)
    names = {"xlnet": "XLNetForQuestionAnswering", "tapas": "TapasForQuestionAnswering"}
    names |= {"flaubert": "FlaubertForQuestionAnswering", "xlm": "XLMForQuestionAnswering"}
    report = plan_conversion(getattr(transformers, names[case.model_type])(settings))
    assert [entry.status for entry in report.entries] == ["converted"] * converted
