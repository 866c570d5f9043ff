"""Checks of what the environment asks of a run: launched processes and Accelerate's variables.

Accelerate reads some variables, overrides some, and drops others without a word. A run that would ignore what was asked
for, or compute something else than its configuration says, is refused before the first step.
"""

from __future__ import annotations

import os

from .config import TrainConfig

MIXED_PRECISION = {"float32": "no", "float64": "no", "bfloat16": "bf16", "float16": "fp16"}
"""Accelerate's name of each ``TrainConfig.precision``."""

ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
"""What Accelerate can train with and this library cannot."""

SIZES = ("TP_SIZE", "CP_SIZE", "SP_SIZE")
NO = ("", "0", "no", "none", "off", "false", "n", "f")
CONNECTION = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHER = "torchrun --nproc-per-node N -m preconditioned_attention ..."


def check_launch(config: TrainConfig) -> None:
    """Raise if the environment asks for something that a run of ``config`` would ignore or that contradicts it.

    Raises:
        ValueError: a variable has such a value; the message names it.
        RuntimeError: processes were launched without what connects them.
    """
    check_connection()
    _check_engines()
    _check_numbers(config)
    _check_fsdp()
    _check_axes()


def is_set(name: str) -> bool:
    """Whether a variable is there and is not a form of no."""
    return os.environ.get(name, "").strip().lower() not in NO


def is_true(name: str) -> bool:
    """Whether Accelerate takes a variable for yes. It compares with "true" alone, so other spellings are refused.

    Raises:
        ValueError: it is another spelling of yes.
    """
    value = os.environ.get(name, "")
    if value.strip().lower() in ("1", "yes", "y", "on", "t"):
        raise ValueError(f"{name}={value} would be ignored: Accelerate knows 'true' only; set {name}=true, or unset it")
    return value.lower() == "true"


def check_connection() -> None:
    """Without these PyTorch waits for processes that never come, or fails with a traceback."""
    numbers = {"WORLD_SIZE": 1, "LOCAL_RANK": -1, "RANK": 0, "MASTER_PORT": 0}
    launched, local, rank, port = (_integer(name, default) for name, default in numbers.items())
    if any(name in os.environ for name in MPI):
        return
    if launched < 1:
        raise ValueError(f"WORLD_SIZE must be at least 1; got WORLD_SIZE={launched}")
    missing = [name for name in CONNECTION if not os.environ.get(name)]
    if missing and (launched > 1 or local >= 0):
        raise RuntimeError(
            f"WORLD_SIZE={os.environ.get('WORLD_SIZE')} and LOCAL_RANK={os.environ.get('LOCAL_RANK')} say that "
            f"{launched} processes were launched, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            f"set; start them with `{LAUNCHER}` or accelerate launch, or unset WORLD_SIZE and LOCAL_RANK to train alone"
        )
    if not 0 <= rank < launched:
        raise ValueError(f"RANK must be from 0 to WORLD_SIZE - 1 = {launched - 1}; got RANK={rank}")
    if not 0 <= port < 2**16:
        raise ValueError(f"MASTER_PORT must be the number of a port, below 65536; got MASTER_PORT={port}")


def _integer(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} must be an integer; got {name}={value!r}") from None


def _check_engines() -> None:
    for name, engine in ENGINES.items():
        if is_true(name):
            raise ValueError(f"{name}={os.environ[name]}: runs are not trained with {engine}; unset it, or use --fsdp")
    if is_set("ACCELERATE_DYNAMO_BACKEND"):
        raise ValueError(
            f"ACCELERATE_DYNAMO_BACKEND={os.environ['ACCELERATE_DYNAMO_BACKEND']}: runs are not compiled; set it to "
            "'no', or unset it"
        )


def _check_numbers(config: TrainConfig) -> None:
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", "", MIXED_PRECISION[config.precision]):  # "no" is what accelerate launch sets by default
        raise ValueError(
            f"ACCELERATE_MIXED_PRECISION={precision} contradicts the run's precision, {config.precision!r}, which "
            f"decides; unset it, or set precision (bf16 is 'bfloat16', fp16 'float16')"
        )
    if is_set("ACCELERATE_FP8_BACKEND"):
        raise ValueError(
            f"ACCELERATE_FP8_BACKEND={os.environ['ACCELERATE_FP8_BACKEND']} would be ignored: the run's precision is "
            f"{config.precision!r} and 8 bits are not supported; unset it"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "").lower()
    if steps not in ("", "auto", "1", str(config.accumulation_steps)):
        raise ValueError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps} would be ignored: the run's accumulation_steps, "
            f"{config.accumulation_steps}, decides; unset it"
        )
    if is_set("ACCELERATE_GRADIENT_CLIPPING") and os.environ["ACCELERATE_GRADIENT_CLIPPING"] != "auto":
        raise ValueError(
            f"ACCELERATE_GRADIENT_CLIPPING={os.environ['ACCELERATE_GRADIENT_CLIPPING']} would be ignored: the run's "
            f"clip_norm, {config.clip_norm}, decides; unset it"
        )


FSDP_UNSUPPORTED = {
    "FSDP_ACTIVATION_CHECKPOINTING": "Accelerate recomputes without the random state, so dropout would differ between "
    "the forward and the backward pass",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "activation checkpointing is not supported",
    "FSDP_IGNORED_MODULES": "gradients of ignored modules would not be averaged over the processes",
}


def _check_fsdp() -> None:
    """Of FSDP, version 2 is supported, with the options that change no number."""
    given = sorted(name for name in os.environ if name.startswith("FSDP_") and is_set(name))
    version = os.environ.get("FSDP_VERSION", "1")
    if not is_true("ACCELERATE_USE_FSDP"):
        if given and (given, version) != (["FSDP_VERSION"], "1"):
            raise ValueError(
                f"{given[0]}={os.environ[given[0]]} would be ignored: Accelerate reads it with "
                "ACCELERATE_USE_FSDP=true only; set that, or unset it"
            )
        return
    if version != "2":
        raise ValueError(
            f"FSDP_VERSION={version} is not supported; set FSDP_VERSION=2 (accelerate launch: --fsdp_version 2)"
        )
    for name, reason in FSDP_UNSUPPORTED.items():
        if is_set(name):
            raise ValueError(f"{name}={os.environ[name]} is not supported: {reason}; unset it")
    if os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT").upper() not in ("SHARDED_STATE_DICT", "3"):
        raise ValueError(
            f"FSDP_STATE_DICT_TYPE={os.environ['FSDP_STATE_DICT_TYPE']} would be ignored: checkpoints are sharded, and "
            "the weights at the end are in one file, model.safetensors; set SHARDED_STATE_DICT, or unset it"
        )


def _check_axes() -> None:
    prefix = "PARALLELISM_CONFIG_"
    given = [name for name in sorted(os.environ) if name.startswith(prefix) and name.endswith("_SIZE")]
    given = [name for name in given if _integer(name, 1) > 1]
    for name in given:
        if name.removeprefix(prefix) in SIZES:
            raise ValueError(
                f"{name}={os.environ[name]} is not supported by train; shard with FSDP2, or write the loop yourself "
                "(examples/)"
            )
    axes = is_true("ACCELERATE_USE_PARALLELISM_CONFIG")
    if given and not (axes and is_true("ACCELERATE_USE_FSDP")):
        raise ValueError(
            f"{given[0]}={os.environ[given[0]]} would be ignored: Accelerate reads it with "
            "ACCELERATE_USE_PARALLELISM_CONFIG=true and ACCELERATE_USE_FSDP=true only; set them, or unset it"
        )
