"""Everything that depends on the kind of device, decided in one place.

A CPU is fastest with activations that fit into its caches, a GPU with large matmuls. GPUs and TPUs
have fast bfloat16 matmuls; on a CPU bfloat16 gains nothing. The choices below were measured. Fields
of TrainConfig override the dtype and the micro-batch.
"""

import os
import time
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.config import GPTConfig, ModelConfig, TrainConfig
from gptjax.errors import UserError

# Tokens x width of a micro-batch on a CPU, for which a layer's activations about fit its caches.
CPU_MICRO_BATCH = 1024 * 384

# Limits of one dispatch. 5e14 floating-point operations take an H100 one or two seconds.
STEPS_PER_DISPATCH, FLOPS_PER_DISPATCH = 50, 5e14

# Up to this many rows, a product with quantized weights is a sum over short pieces. With more
# rows, unpacking the weights into floats costs less than the matmul.
FEW_ROWS = 4


def backend() -> str:
    """ "cpu", "gpu" or "tpu"."""
    return jax.default_backend()


def on_cpu() -> bool:
    return backend() == "cpu"


def n_devices() -> int:
    """Number of devices of all processes."""
    return jax.device_count()


def require_backend() -> None:
    """Raises UserError when JAX cannot start, for example on a GPU that is not there."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        asked = os.environ.get("JAX_PLATFORMS")
        wanted = (
            f"JAX_PLATFORMS={asked} is not available here; unset it"
            if asked
            else ("JAX finds no device it can use; JAX_PLATFORMS=cpu keeps to the CPU")
        )
        raise UserError(wanted) from None


def compute_dtype(config: TrainConfig) -> Any:
    """The dtype of activations and matmuls."""
    if config.dtype == "auto":
        return jnp.float32 if on_cpu() else jnp.bfloat16
    return jnp.dtype(config.dtype)


def micro_batch_size(
    config: TrainConfig, model: ModelConfig, tokens_per_sequence: float, n_devices: int = 1
) -> int:
    """Sequences per forward-backward pass: a divisor of the batch, a multiple of n_devices.

    n_devices: number of devices that share the rows of a batch.
    """
    if config.micro_batch_size:
        return config.micro_batch_size
    if not on_cpu() or not isinstance(model, GPTConfig):
        return config.batch_size
    most = max(1, int(CPU_MICRO_BATCH / (tokens_per_sequence * model.n_embd))) * n_devices
    fits = [m for m in range(n_devices, most + 1, n_devices) if config.batch_size % m == 0]
    return max(fits, default=config.batch_size)


def steps_per_dispatch(n_params: int, tokens_per_step: float, n_devices: int) -> int:
    """Most optimizer steps in one call to the device.

    At most 50, and fewer for large models, so that signals are checked every few seconds.
    """
    flops_per_device = 6 * n_params * tokens_per_step / n_devices
    return max(1, min(STEPS_PER_DISPATCH, int(FLOPS_PER_DISPATCH / flops_per_device)))


def compiler_options() -> dict[str, Any]:
    """XLA's options for the train step.

    On a GPU cuBLASLt multiplies matrices: it adds biases and applies ReLU itself, and there are no
    Triton tilings to try, which is most of the compile time.
    """
    return {"xla_gpu_enable_triton_gemm": False} if backend() == "gpu" else {}


def query_chunks(n_target: int) -> list[tuple[int, int]]:
    """Ranges (first, end) of queries that causal attention computes one after the other.

    On a CPU a quarter of them at a time, at least 32: that computes only 5/8 of the scores. On an
    accelerator, and in a program for any n_target, all of them at once.
    """
    is_open = not isinstance(n_target, int)
    n_chunks = min(4, max(1, n_target // 32)) if on_cpu() and not is_open else 1
    edges = [n_target * i // n_chunks for i in range(n_chunks + 1)]
    return list(pairwise(edges))


def describe() -> str:
    """The devices in words: "1 x NVIDIA H200", "cpu (2 cores)"."""
    devices = jax.devices()
    if on_cpu() and len(devices) == 1:
        return f"cpu ({len(os.sched_getaffinity(0))} cores)"
    return f"{len(devices)} x {devices[0].device_kind}"


def matmul_rate(dtype: Any, size: int = 1024) -> float:
    """Floating-point operations per second of a size^3 matmul on one device, best of three."""
    n_matmuls = 4 if on_cpu() else 200
    step = jax.jit(lambda x: jax.lax.fori_loop(0, n_matmuls, lambda _, y: y @ x * 1e-3, x))
    x = jnp.full((size, size), 0.5, dtype)
    step(x).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        step(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * n_matmuls / min(seconds)


def training_speed(n_params: int, matmul_rate: float) -> float:
    """Estimated training speed in tokens per second.

    6 operations per parameter and token, at 30 % of the matmul rate, which training reaches.
    """
    return 0.3 * matmul_rate / (6 * n_params)
