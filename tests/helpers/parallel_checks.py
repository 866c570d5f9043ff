"""Checks that several processes run on converted models: they compute and train as one process does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe, SplitPoint, pipeline
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion import from_pretrained, register_prehook, shard_gains_
from tests.helpers.parallel_models import CONFIGS, FORMS, loss_of, new_model, train

Wrap = Callable[[nn.Module, str], nn.Module]
WHOLE = StateDictOptions(full_state_dict=True)


def batches_of(form: str, dtype: torch.dtype, count: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    batches = [FORMS[form].batch(4) for _ in range(count)]
    return [batch.to(dtype) if batch.is_floating_point() else batch for batch in batches]


def ddp(model: nn.Module, form: str) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp1(**options: Any) -> Wrap:
    def wrap(model: nn.Module, form: str) -> nn.Module:
        policy = ModuleWrapPolicy({type(block) for block in FORMS[form].blocks(model)})
        return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), **options)

    return wrap


def fsdp2(**options: Any) -> Wrap:
    def wrap(model: nn.Module, form: str) -> nn.Module:
        for block in FORMS[form].blocks(model):
            fully_shard(block, **options)
        return fully_shard(model, **options)

    return wrap


def checkpointed(reentrant: bool | None) -> Wrap:
    """FSDP2 round blocks that are computed again in the backward pass: by a wrapper, or by a function."""

    def wrap(model: nn.Module, form: str) -> nn.Module:
        for block in FORMS[form].blocks(model):
            if reentrant is None:
                holder = next(part for part in model.modules() if block in part.children())
                name = next(name for name, child in holder.named_children() if child is block)
                setattr(holder, name, checkpoint_wrapper(block))
            else:
                block.forward = _recomputed(block.forward, reentrant)
        for part in [part for part in model.modules() if isinstance(part, CheckpointWrapper)]:
            fully_shard(part)
        return fully_shard(model)

    return wrap


def _recomputed(forward: Callable[..., Any], reentrant: bool) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=reentrant, **kwargs)

    return recomputed


def compiled(model: nn.Module, form: str) -> nn.Module:
    for block in FORMS[form].blocks(model):
        block.compile(backend="aot_eager")
        fully_shard(block)
    return fully_shard(model)


WRAPS: dict[str, Wrap] = {
    "DDP": ddp,
    "FSDP1": fsdp1(use_orig_params=True),
    "FSDP1, flat": fsdp1(use_orig_params=False),
    "FSDP1, gradients": fsdp1(use_orig_params=True, sharding_strategy=ShardingStrategy.SHARD_GRAD_OP),
    "FSDP2": fsdp2(),
    "FSDP2, kept": fsdp2(reshard_after_forward=False),
    "FSDP2, offloaded": fsdp2(offload_policy=CPUOffloadPolicy(pin_memory=False)),
    "FSDP2, checkpoint wrapper": checkpointed(None),
    "FSDP2, checkpoint function": checkpointed(False),
    "FSDP2, compiled": compiled,
}
HALF: dict[str, Wrap] = {
    "FSDP1": fsdp1(
        use_orig_params=True, mixed_precision=MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    ),
    "FSDP2": fsdp2(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)),
}


def trains_as_one_process(rank: int, wrap: str, forms: list[str], dtype: torch.dtype = torch.float64) -> None:
    """Losses and, in float64, all weights, converted before the wrapper and, where no parameter is added, after it.

    In float32 weights are not compared: the gradient of a key's bias is rounding noise, which AdamW makes a step.
    """
    bound = 1e-9 if dtype == torch.float64 else 1e-4
    for form in forms:
        for config in CONFIGS.values():
            batches, alone = batches_of(form, dtype), new_model(form, dtype)
            precondition_(alone, config)
            expected = train(alone, batches, clip="FSDP1" not in wrap)
            for first in (True, False) if config.gain is None and "compiled" not in wrap else (True,):
                model = new_model(form, dtype)
                wrapped = _wrapped(model, wrap, form, config, first)
                mine = [batch.chunk(2)[rank] for batch in batches]
                losses = torch.tensor(train(wrapped, mine, clip="FSDP1" not in wrap), dtype=torch.float64)
                dist.all_reduce(losses)
                case = f"{wrap}, {form}, {config}, converted {'first' if first else 'last'}"
                assert (losses / 2 - torch.tensor(expected, dtype=torch.float64)).abs().max() <= bound, case
                if dtype == torch.float64:
                    _assert_state(get_model_state_dict(wrapped, options=WHOLE), alone.state_dict(), bound, case)


def _wrapped(model: nn.Module, wrap: str, form: str, config: PreconditionConfig, first: bool) -> nn.Module:
    if first:
        precondition_(model, config)
        return WRAPS[wrap](model, form)
    wrapped = WRAPS[wrap](model, form)
    precondition_(wrapped, config)
    return wrapped


def _assert_state(actual: dict[str, Any], expected: dict[str, Any], bound: float, case: str) -> None:
    if dist.get_rank() or not actual:
        return
    assert actual.keys() == expected.keys(), case
    for key, value in expected.items():
        assert (actual[key].float() - value.float()).abs().max() <= bound, f"{case}: {key}"


def trains_in_mixed_precision(rank: int, wrap: str, forms: list[str]) -> None:
    """In bfloat16 with float32 weights: the loss is that of float32 up to rounding, and training goes on."""
    for form in forms:
        batches, alone = batches_of(form, torch.float32), new_model(form, torch.float32)
        precondition_(alone)
        expected = torch.tensor(train(alone, batches, clip=False))
        model = new_model(form, torch.float32)
        precondition_(model)
        wrapped = HALF[wrap](model, form)
        losses = torch.tensor(train(wrapped, [batch.chunk(2)[rank] for batch in batches], clip=False))
        dist.all_reduce(losses)
        assert losses.isfinite().all(), form
        assert (losses[0] / 2 - expected[0]).abs() <= 0.02 * (1 + expected[0].abs()), form


def refuses_a_gain_afterwards(rank: int) -> None:
    """It would be trained on each process by itself."""
    for name, words in {
        "DDP": "DistributedDataParallel",
        "FSDP1": "FullyShardedDataParallel",
        "FSDP2": "fully_shard",
    }.items():
        wrapped = WRAPS[name](new_model("torch encoder"), "torch encoder")
        with pytest.raises(
            ValueError, match=f"config.gain must be None where .* is wrapped by {words}.*before {words}"
        ):
            precondition_(wrapped, CONFIGS["stop with a gain"])
    wrapped = ddp(new_model("torch encoder"), "torch encoder")
    precondition_(wrapped.module, CONFIGS["stop with a gain"])
    with pytest.raises(RuntimeError, match="a gain was added after DistributedDataParallel"):
        wrapped(batches_of("torch encoder", torch.float64)[0])


def saves(rank: int, form: str, folder: Path) -> None:
    """Two steps on this number of processes, and a checkpoint."""
    wrapped, optimizer = _sharded(form)
    _steps(wrapped, optimizer, batches_of(form, torch.float64)[:2])
    model_state, optimizer_state = get_state_dict(wrapped, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)


def goes_on(rank: int, form: str, folder: Path, expected: list[float]) -> None:
    """The third step, from the checkpoint, on this number of processes."""
    wrapped, optimizer = _sharded(form)
    model_state, optimizer_state = get_state_dict(wrapped, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*precondition")
        dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
        set_state_dict(wrapped, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    losses = _steps(wrapped, optimizer, batches_of(form, torch.float64)[2:])
    assert losses == pytest.approx(expected[2:], abs=1e-9)


def _sharded(form: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = new_model(form)
    precondition_(model, CONFIGS["stop with a gain"])
    wrapped = WRAPS["FSDP2"](model, form)
    return wrapped, torch.optim.AdamW(wrapped.parameters(), lr=1e-2)


def _steps(wrapped: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]) -> list[float]:
    """Every process has its part of a batch, or one of four samples."""
    losses = []
    for batch in batches:
        loss = loss_of(wrapped(batch.chunk(dist.get_world_size())[dist.get_rank()]))
        loss.backward()
        nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    return losses


def notices_plain_weights(rank: int) -> None:
    """However `set_model_state_dict` brings them into a sharded model; its own come back without a word."""
    form = "torch encoder"
    plain = new_model(form).state_dict()
    for options in (
        {},
        {"broadcast_from_rank0": True},
        {"strict": False},
        {"broadcast_from_rank0": True, "strict": False},
    ):
        given = StateDictOptions(full_state_dict=True, **options)
        model = new_model(form)
        precondition_(model)
        wrapped = WRAPS["FSDP2"](model, form)
        state = plain if rank == 0 or "broadcast_from_rank0" not in options else {}
        with pytest.warns(UserWarning, match="does not say that it was trained with preconditioned attention"):
            set_model_state_dict(wrapped, dict(state), options=given)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*precondition")
            set_model_state_dict(wrapped, get_model_state_dict(wrapped, options=given), options=given)


# Tensor parallelism.


class SeparateAttention(nn.Module):
    """Attention with one projection for each of q, k and v, whose rows a hook scales."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 4, 4
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SeparateBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(16), SeparateAttention()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


def add_hooked_form() -> None:
    """A form whose rows are scaled in front of a row-wise parallel projection."""
    register_prehook(SeparateAttention, hook_target="out", num_heads="heads")
    FORMS["hooked"] = type(FORMS["own layers"])(
        lambda: nn.Sequential(SeparateBlock(), SeparateBlock()), FORMS["own layers"].batch, list
    )


PROJECTIONS = {
    "own layers": ("attn", ["q_proj", "k_proj", "v_proj"], "proj"),
    "hooked": ("attn", ["q", "k", "v"], "out"),
    "Llama": ("self_attn", ["q_proj", "k_proj", "v_proj"], "o_proj"),
}


def _tensor_parallel(model: nn.Module, form: str, **options: Any) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    name, columns, row = PROJECTIONS[form]
    plan: dict[str, Any] = {f"{name}.{column}": ColwiseParallel(**options) for column in columns}
    for block in FORMS[form].blocks(model):
        parallelize_module(block, mesh, {**plan, f"{name}.{row}": RowwiseParallel()})


def trains_with_shared_out_heads(rank: int) -> None:
    """Losses and gains; the conversion first or last; projections that return local or distributed tensors."""
    add_hooked_form()
    for form in PROJECTIONS:
        for config in CONFIGS.values():
            batches, alone = batches_of(form, torch.float64), new_model(form)
            precondition_(alone, config)
            expected = train(alone, batches, clip=False)
            for first in (True, False):
                for local in (True, False) if form == "own layers" else (True,):
                    model = new_model(form)
                    if first:
                        precondition_(model, config)
                    _tensor_parallel(model, form, use_local_output=local)
                    if first:
                        assert shard_gains_(model) == (0 if config.gain is None else 2)
                    else:
                        precondition_(model, config)
                    losses = train(model, batches, clip=False)
                    assert losses == pytest.approx(expected, abs=1e-10), (form, config, first, local)
                    _assert_gains(model, alone)


def _assert_gains(model: nn.Module, alone: nn.Module) -> None:
    for (name, gain), whole in zip(model.named_parameters(), alone.parameters(), strict=True):
        if name.endswith("gain"):
            assert isinstance(gain, DTensor)
            assert gain.to_local().shape == (4 // dist.get_world_size(),)
            assert (gain.full_tensor() - whole).abs().max() <= 1e-10


def refuses_a_whole_gain_for_some_heads(rank: int) -> None:
    for form in ("Llama", "own layers"):
        model = new_model(form)
        precondition_(model, CONFIGS["stop with a gain"])
        _tensor_parallel(model, form)
        with pytest.raises(
            ValueError, match=r"gain has 4 values and this process has 2 of the heads.*shard_gains_\(model\)"
        ):
            model(batches_of(form, torch.float64)[0])


def follows_the_plan_of_transformers(rank: int, folder: Path) -> None:
    """`tp_plan` applied by hand, and by `from_pretrained(..., tp_plan="auto")` for a converted folder."""
    batch, config = batches_of("Llama", torch.float64)[0], CONFIGS["stop with a gain"]
    alone = new_model("Llama")
    precondition_(alone, config)
    with torch.no_grad():
        for name, gain in alone.named_parameters():
            if name.endswith("gain"):
                gain.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    if rank == 0:
        alone.save_pretrained(folder)
    dist.barrier()
    loaded = from_pretrained(AutoModelForCausalLM, folder, tp_plan="auto", dtype=torch.float64)
    for model in (loaded, _by_hand(alone)):
        gains = [gain for name, gain in model.named_parameters() if name.endswith("gain")]
        assert [gain.to_local().tolist() for gain in gains] == [[[0.5, 1.0], [2.0, 3.0]][rank]] * 2
        model.train()
        assert (model(batch).logits - alone(batch).logits).abs().max() <= 1e-12
        loss_of(model(batch)).backward()


def _by_hand(alone: nn.Module) -> nn.Module:
    model = new_model("Llama")
    precondition_(model, CONFIGS["stop with a gain"])
    model.load_state_dict(alone.state_dict())
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    plan = {
        f"model.layers.{i}.self_attn.{name}": style
        for i in range(2)
        for name, style in {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "o_proj": "rowwise"}.items()
    }
    plan |= {f"{name}.weight": style for name, style in plan.items()}
    apply_tensor_parallelism(model, mesh, plan)
    shard_gains_(model)
    return model


def shares_out_the_sequence_between_blocks(rank: int) -> None:
    """Norms on a part of the sequence each, attention on the whole sequence and some of the heads."""
    for config in CONFIGS.values():
        batches, alone = batches_of("own layers", torch.float64), new_model("own layers")
        precondition_(alone, config)
        model = new_model("own layers")
        precondition_(model, config)
        mesh = init_device_mesh("cpu", (2,))
        for block in model:
            plan = {
                "norm": SequenceParallel(),
                "attn": PrepareModuleInput(input_layouts=(_tokens(),), desired_input_layouts=(_everywhere(),)),
                **{f"attn.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")},
                "attn.proj": RowwiseParallel(output_layouts=_tokens()),
                "mlp.0": ColwiseParallel(input_layouts=_tokens()),
                "mlp.2": RowwiseParallel(output_layouts=_tokens()),
            }
            parallelize_module(block, mesh, plan)
        shard_gains_(model)
        for batch in batches:
            out = model(batch.chunk(2, dim=1)[rank])
            assert (out - alone(batch).chunk(2, dim=1)[rank]).abs().max() <= 1e-12


def _tokens() -> Any:
    return torch.distributed.tensor.Shard(1)


def _everywhere() -> Any:
    return torch.distributed.tensor.Replicate()


def shares_out_heads_and_samples(rank: int) -> None:
    """FSDP2 over two processes and tensor parallelism over two, with a gain."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("samples", "heads"))
    config = CONFIGS["stop with a gain"]
    for form in ("own layers", "Llama"):
        batches, alone = batches_of(form, torch.float64), new_model(form)
        precondition_(alone, config)
        expected = train(alone, batches, clip=False)
        model = new_model(form)
        precondition_(model, config)
        name, columns, row = PROJECTIONS[form]
        for block in FORMS[form].blocks(model):
            plan: dict[str, Any] = {f"{name}.{column}": ColwiseParallel() for column in columns}
            parallelize_module(block, mesh["heads"], {**plan, f"{name}.{row}": RowwiseParallel()})
        shard_gains_(model)
        for block in FORMS[form].blocks(model):
            fully_shard(block, mesh=mesh["samples"])
        fully_shard(model, mesh=mesh["samples"])
        own = mesh.get_local_rank("samples")
        losses = torch.tensor(train(model, [batch.chunk(2)[own] for batch in batches], clip=False))
        dist.all_reduce(losses)
        assert losses.div(4).tolist() == pytest.approx(expected, abs=1e-6), form


# Pipelines.


def computes_in_a_pipeline(rank: int, forms: list[str]) -> None:
    """The tracer: output and gradients; a stage that is traced already is refused."""
    for form in forms:
        for config in CONFIGS.values():
            batch, alone, model = batches_of(form, torch.float64)[0], new_model(form), new_model(form)
            precondition_(alone, config)
            precondition_(model, config)
            last = FORMS[form].blocks(model)[-1]
            name = next(name for name, module in model.named_modules() if module is last)
            pipe = pipeline(model, mb_args=(batch[:2],), split_spec={name: SplitPoint.BEGINNING})
            stage = pipe.build_stage(rank, torch.device("cpu"))
            _assert_pipeline(rank, stage, batch, alone, form)
            with pytest.raises(ValueError, match=r"is a graph, of torch.fx or torch.export|nothing to convert"):
                precondition_(stage.submod, config)


def computes_in_stages_by_hand(rank: int) -> None:
    """Stages that were cut from the converted model, and stages that are converted one by one."""
    for config in CONFIGS.values():
        for first in (True, False):
            batch, alone, model = (
                batches_of("own layers", torch.float64)[0],
                new_model("own layers"),
                new_model("own layers"),
            )
            precondition_(alone, config)
            if first:
                precondition_(model, config)
            part = nn.Sequential()
            part.add_module(str(rank), model[rank])
            if not first:
                precondition_(part, config)
            stage = PipelineStage(part, rank, 2, torch.device("cpu"), input_args=(batch[:2],))
            _assert_pipeline(rank, stage, batch, alone, "own layers")


def _assert_pipeline(rank: int, stage: Any, batch: Tensor, alone: nn.Module, case: str) -> None:
    loss = loss_of(alone(batch))
    loss.backward()
    schedule = ScheduleGPipe(stage, 2, loss_fn=lambda out, target: loss_of(out))
    losses: list[Tensor] = []
    schedule.step(batch) if rank == 0 else schedule.step(target=batch, losses=losses)
    if rank == 1:
        assert (torch.stack(losses).mean() - loss).abs() <= 1e-10, case
    expected = dict(alone.named_parameters())
    for name, parameter in stage.submod.named_parameters():
        wanted = expected[name].grad
        assert (parameter.grad - wanted).abs().max() <= 1e-10 * (1 + wanted.abs().max()), (case, name)
