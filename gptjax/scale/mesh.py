"""The mesh: devices as a grid of data x fsdp x model, and how batches get onto it.

Each process reads only the rows of a batch that its own devices need.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.config import Config, GPTConfig
from gptjax.errors import UserError
from gptjax.scale import devices

AXES = ("data", "fsdp", "model")
ROWS = ("data", "fsdp")
"""The axes that split the rows of a batch."""


def make_mesh(config: Config) -> Mesh:
    """The devices as data x fsdp x model, in an order that suits their connections.

    Raises UserError if there are fewer devices than asked for, if several processes would leave
    some idle, and if batch, micro-batch or heads cannot be divided by the mesh.
    """
    sizes = {axis: getattr(config.mesh, axis) for axis in AXES}
    asked = " x ".join(f"--mesh.{axis} {size}" for axis, size in sizes.items() if size != 1)
    n_devices = jax.device_count()
    fixed = math.prod(size for size in sizes.values() if size != -1)
    takes_all = jax.process_count() > 1 or -1 in sizes.values()
    if fixed > n_devices:
        raise UserError(
            f"{asked} needs {fixed} devices, but JAX sees {n_devices} in {jax.process_count()} "
            "process(es); ask for fewer, or see why some are missing: gptjax doctor"
        )
    sizes = {axis: n_devices // fixed if size == -1 else size for axis, size in sizes.items()}
    n_used = math.prod(sizes.values())
    if n_used < n_devices and takes_all:
        raise UserError(
            f"{asked} uses {n_used} of the {n_devices} devices, because {fixed} does not divide "
            f"{n_devices}; ask for sizes whose product is {n_devices}"
        )
    n_rows, n_model = sizes["data"] * sizes["fsdp"], sizes["model"]
    for flag, size in (
        ("batch-size", config.train.batch_size),
        ("micro-batch-size", config.train.micro_batch_size),
    ):
        if size % n_rows:
            raise UserError(
                f"--train.{flag} is {size}, but must be a multiple of the {n_rows} devices that "
                f"share it (--mesh.data {sizes['data']} x --mesh.fsdp {sizes['fsdp']})"
            )
    if isinstance(config.model, GPTConfig) and config.model.n_head % n_model:
        raise UserError(
            f"--mesh.model is {n_model}, but must divide --model.n-head {config.model.n_head}: "
            "devices share the heads of attention"
        )
    # Auto: XLA's partitioner chooses the sharding of everything that no rule names.
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, types, devices=jax.devices()[:n_used])


def describe(mesh: Mesh) -> str:
    """The mesh in words: "cpu (2 cores)", "2 processes x 4 x cpu as data 2 x fsdp 2 x model 2"."""
    if mesh.size == 1:
        return devices.describe()
    layout = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    n_processes = jax.process_count()
    of_each = f"{mesh.size // n_processes} x {jax.devices()[0].device_kind} as {layout}"
    return f"{n_processes} processes x {of_each}" if n_processes > 1 else of_each


def n_row_groups(mesh: Mesh) -> int:
    """Number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays with the leading axes (step, row): split by row."""
    return NamedSharding(mesh, P(None, ROWS))


def local_rows(batch_size: int, mesh: Mesh) -> slice:
    """The rows of a batch that the devices of this process need."""
    sharding = NamedSharding(mesh, P(ROWS))
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    ranges = [index[0].indices(batch_size) for index in indices if index]
    return slice(min(r[0] for r in ranges), max(r[1] for r in ranges))


def put(batch: dict[str, np.ndarray], batch_size: int, mesh: Mesh) -> dict[str, Any]:
    """Moves batches to the devices.

    batch: the local_rows, leaves (K, b, ...). Returns global arrays, leaves (K, B, ...).
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, batch_sharding(mesh))
    first_row = local_rows(batch_size, mesh).start

    def put_leaf(leaf: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            first, end, _ = index[1].indices(batch_size)
            return leaf[:, first - first_row : end - first_row]

        shape = (leaf.shape[0], batch_size, *leaf.shape[2:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh), shard)

    return {name: put_leaf(leaf) for name, leaf in batch.items()}
