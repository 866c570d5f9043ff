from pathlib import Path

import pytest

from preconditioned_attention.lab.training import train
from preconditioned_attention.lab.training.launch import check_launch
from tests.helpers.toy_task import toy_config

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
AXES = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}
CONNECTED = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}

REFUSED = [
    ({"WORLD_SIZE": "2"}, "2 processes were launched, but RANK, MASTER_ADDR, MASTER_PORT are not set"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "but MASTER_ADDR is not set; start them with `torchrun"),
    ({"LOCAL_RANK": "0"}, "but RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be an integer; got WORLD_SIZE='two'"),
    ({"LOCAL_RANK": "x"}, "LOCAL_RANK must be an integer"),
    ({**CONNECTED, "RANK": "zero"}, "RANK must be an integer"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be at least 1; got WORLD_SIZE=0"),
    ({"RANK": "1"}, "RANK must be from 0 to WORLD_SIZE - 1 = 0; got RANK=1"),
    ({"RANK": "first"}, "RANK must be an integer; got RANK='first'"),
    ({**CONNECTED, "RANK": "2"}, "RANK must be from 0 to WORLD_SIZE - 1 = 1; got RANK=2"),
    ({**CONNECTED, "RANK": "-1"}, "RANK must be from 0"),
    ({**CONNECTED, "MASTER_PORT": "99999"}, "MASTER_PORT must be the number of a port"),
    ({**CONNECTED, "MASTER_PORT": "http"}, "MASTER_PORT must be an integer"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED=true: runs are not trained with DeepSpeed"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "not trained with Megatron-LM"),
    ({"ACCELERATE_USE_SAGEMAKER": "true"}, "not trained with SageMaker"),
    ({"ACCELERATE_USE_FSDP": "1"}, "ACCELERATE_USE_FSDP=1 would be ignored: Accelerate knows 'true' only"),
    ({"ACCELERATE_USE_DEEPSPEED": "yes"}, "ACCELERATE_USE_DEEPSPEED=yes would be ignored"),
    ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "ACCELERATE_DYNAMO_BACKEND=INDUCTOR: runs are not compiled"),
    (
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        "ACCELERATE_MIXED_PRECISION=bf16 contradicts the run's precision, 'f",
    ),
    ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "ACCELERATE_MIXED_PRECISION=fp8 contradicts"),
    ({"ACCELERATE_FP8_BACKEND": "TE"}, "ACCELERATE_FP8_BACKEND=TE would be ignored"),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "the run's accumulation_steps, 1, decides"),
    ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "the run's clip_norm, None, decides"),
    ({"ACCELERATE_USE_FSDP": "true"}, "FSDP_VERSION=1 is not supported; set FSDP_VERSION=2"),
    ({**FSDP, "FSDP_VERSION": "1"}, "FSDP_VERSION=1 is not supported"),
    ({**FSDP, "FSDP_VERSION": "two"}, "FSDP_VERSION=two is not supported"),
    ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "1"}, "dropout would differ between the forward and the backward pass"),
    ({**FSDP, "FSDP_IGNORED_MODULES": ".*head"}, "would not be averaged over the processes"),
    ({**FSDP, "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, "FSDP_STATE_DICT_TYPE=FULL_STATE_DICT would be ignored"),
    ({"FSDP_VERSION": "2"}, "FSDP_VERSION=2 would be ignored: Accelerate reads it with ACCELERATE_USE_FSDP=true only"),
    ({"FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS=true would be ignored"),
    ({**FSDP, **AXES, "PARALLELISM_CONFIG_TP_SIZE": "2"}, "PARALLELISM_CONFIG_TP_SIZE=2 is not supported by train"),
    ({**FSDP, **AXES, "PARALLELISM_CONFIG_CP_SIZE": "2"}, "PARALLELISM_CONFIG_CP_SIZE=2 is not supported"),
    ({"PARALLELISM_CONFIG_SP_SIZE": "2"}, "PARALLELISM_CONFIG_SP_SIZE=2 is not supported"),
    ({**FSDP, "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}, "PARALLELISM_CONFIG_DP_SHARD_SIZE=2 would be ignored"),
    ({**AXES, "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}, "ACCELERATE_USE_FSDP=true only"),
    ({**FSDP, "PARALLELISM_CONFIG_TP_SIZE": "a"}, "PARALLELISM_CONFIG_TP_SIZE must be an integer"),
    (FSDP, "ACCELERATE_USE_FSDP=true would be ignored: Accelerate shards over the processes of a launcher"),
    ({**FSDP, "FSDP_AUTO_WRAP_POLICY": "BLOCKS"}, "the processes of the run could not be set up: Invalid auto wrap"),
]

ACCEPTED = [
    {},
    CONNECTED,
    {"WORLD_SIZE": "1"},
    {"WORLD_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"},
    # What `accelerate launch` sets when it is not told anything.
    {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"},
    {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2", "ACCELERATE_MIXED_PRECISION": "bf16"},
    {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "false", "FSDP_VERSION": "1"},
    {**FSDP, "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
    {**FSDP, **AXES, "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2", "PARALLELISM_CONFIG_TP_SIZE": "1"},
]


@pytest.mark.parametrize(("environment", "message"), REFUSED, ids=lambda value: "-".join(value)[:60])
def test_what_would_be_ignored_is_refused_before_the_first_step(
    environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # train sets it; the test removes it
    with pytest.raises((ValueError, RuntimeError)) as caught:
        train(toy_config(), tmp_path / "run", progress=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", ACCEPTED, ids=lambda value: "-".join(value)[:60])
def test_what_is_respected_is_accepted(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launch(toy_config(accumulation_steps=2, precision="bfloat16"))
