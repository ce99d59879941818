"""Where arrays live when there are several devices: the mesh, the rules, the processes.

No model knows of it. A batch is split by rows over the axes data x fsdp; parameters, and whatever
the optimizer keeps of them, are split over fsdp x model by the rules below. From there XLA's
partitioner (GSPMD, Xu et al. 2021, arXiv:2105.04663) splits the computation and adds the
collectives:

    data    every device has whole parameters; gradients are summed (all-reduce)
    fsdp    every device keeps a part of each parameter, gathers it for use and drops it again;
            gradients are summed and split (ZeRO stage 3, Rajbhandari et al. 2020)
    model   every device computes a part of each matmul: the heads of attention, the hidden values
            of the MLP (Shoeybi et al. 2019, Megatron-LM)
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.config import Config, GPTConfig
from gptjax.errors import UserError
from gptjax.scale import devices

AXES = ("data", "fsdp", "model")
ROWS = ("data", "fsdp")
"""The axes that split the rows of a batch."""

# Which axes split the dimensions of an array, by its path, "block_0.mlp.hidden.kernel" for one.
# Exactly one rule fits each. The optimizer's averages have the path of their parameter at the end.
RULES = (
    # Kernels are (in, out). Each device makes some heads, or hidden values, of all inputs ...
    (r"\.(query|key|value|hidden|gate)\.kernel", P("fsdp", "model")),
    # ... and from those its share of a sum over all of them.
    (r"\.output\.kernel", P("model", "fsdp")),
    (r"(^|\.)(head|conv_\d)\.kernel", P("fsdp", "model")),
    # (vocabulary or position, width)
    (r"(^|\.)(token_embedding|position_embedding|table)\.table", P("model", "fsdp")),
    (r"\.(bias|scale|w_-?\d+)", P(("model", "fsdp"))),
    # Muon's stacks of all matrices of one shape: whole ones on each device, if there are enough.
    (r"\.\(\d+, \d+\)", P(("fsdp", "model"))),
    # The optimizer's counts, Muon's coefficients, the step.
    (r"(^|\.)(count|ns_coeffs|step)", P()),
)

# What the model axis splits in use as well. Parameters that add to the residual stream, a norm's
# gain for one, are whole there: else XLA would split the stream, and gather it for every matmul.
MODEL_PARALLEL = (
    r"(query|key|value|hidden|gate|head)\.(kernel|bias)|output\.kernel|token_embedding\.table"
)


def make_mesh(config: Config) -> Mesh:
    """The devices as data x fsdp x model, in the order that their connections like best.

    Raises UserError when there are fewer than asked for, when several processes would leave some
    idle, and when batch, micro-batch or heads cannot be split so.
    """
    sizes = {axis: getattr(config.mesh, axis) for axis in AXES}
    asked = " x ".join(f"--mesh.{axis} {size}" for axis, size in sizes.items() if size != 1)
    n_devices = jax.device_count()
    fixed = math.prod(size for size in sizes.values() if size != -1)
    takes_all = jax.process_count() > 1 or -1 in sizes.values()
    if fixed > n_devices:
        raise UserError(
            f"{asked} wants {fixed} devices, but JAX sees {n_devices} in {jax.process_count()} "
            "process(es); ask for fewer, or see why some are missing: gptjax doctor"
        )
    sizes = {axis: n_devices // fixed if size == -1 else size for axis, size in sizes.items()}
    n_used = math.prod(sizes.values())
    if n_used < n_devices and takes_all:
        raise UserError(
            f"{asked} makes use of {n_used} of the {n_devices} devices, which "
            f"{fixed} does not divide; ask for sizes whose product is {n_devices}"
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
    shape = tuple(sizes.values())
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, types, devices=jax.devices()[:n_used])


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """How an array of a training state is split.

    An axis that does not divide its dimension evenly moves on to the next that it does, or splits
    nothing. Raises ValueError unless exactly one rule fits the path.
    """
    split: list[tuple[str, ...]] = [()] * len(shape)
    for first, axes in enumerate(_rule(path)):
        for axis in _tuple(axes):
            if mesh.shape[axis] == 1:
                continue
            for i in (i % len(shape) for i in range(first, first + len(shape))):
                if shape[i] % (mesh.shape[axis] * math.prod(mesh.shape[a] for a in split[i])) == 0:
                    split[i] += (axis,)
                    break
    return P(*(axes or None for axes in split))


def spec_in_use(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """How a parameter is split while it computes: over model alone, where that splits a matmul."""
    if not re.search(rf"(^|\.)({MODEL_PARALLEL})$", path):
        return P()
    at_rest, rule = partition_spec(path, shape, mesh), _rule(path)
    # An axis that moved on to another dimension splits no matmul there.
    split = [
        "model" in _tuple(axes) and "model" in _tuple(wanted)
        for axes, wanted in zip(at_rest, rule, strict=True)
    ]
    return P(*("model" if is_split else None for is_split in split))


def _rule(path: str) -> P:
    specs = [spec for pattern, spec in RULES if re.search(pattern + r"$", path)]
    if len(specs) != 1:
        raise ValueError(f"{len(specs)} sharding rules fit {path}, but must be 1")
    return specs[0]


def _tuple(axes: Any) -> tuple[str, ...]:
    """The axes in an entry of a PartitionSpec: None, one, or several."""
    return axes if isinstance(axes, tuple) else () if axes is None else (axes,)


def path_of(path: tuple[Any, ...]) -> str:
    """A path of jax.tree_util as text: "block_0.mlp.hidden.kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def by_path(tree: Any) -> dict[str, Any]:
    """{"block_0.mlp.hidden.kernel": leaf, ...} in the tree's order."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """Shapes that carry a sharding each, to restore a checkpoint into.

    shardings: a tree like that of the shapes, or one sharding for all of them.
    """
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        jax.tree.broadcast(shardings, shapes),
    )


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a training state, or of its parameters."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(path_of(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def n_row_groups(mesh: Mesh) -> int:
    """Parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of batches with the leading axes (step, row)."""
    return NamedSharding(mesh, P(None, ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def replicate(tree: Any, mesh: Mesh | None = None) -> Any:
    """Within jit: whole on every device, for every process to read.

    The mesh is by default that of jax.set_mesh; without one, the tree as it is.
    """
    if mesh is None and jax.sharding.get_abstract_mesh().empty:
        return tree
    spec = P() if mesh is None else NamedSharding(mesh, P())
    return lax.with_sharding_constraint(tree, jax.tree.map(lambda _: spec, tree))


def constrain(tree: Any, mesh: Mesh | None) -> Any:
    """Within jit: keeps the leaves of a training state, or of gradients, split by the rules."""
    if mesh is None or mesh.size == 1:
        return tree
    return lax.with_sharding_constraint(tree, shardings(tree, mesh))


def gather_for_use(loss: Callable[..., Any], mesh: Mesh | None, dtype: Any) -> Callable[..., Any]:
    """`loss` (of parameters, then more), with parameters gathered where it uses them.

    Matrices travel in the dtype that the model would make of them anyway, so that bfloat16 sends
    half as much. The gathered ones are not kept for the backward pass, which gathers them again:
    that lets a compiler never have the whole of them in memory at once.
    """
    if mesh is None or mesh.shape["fsdp"] * mesh.shape["model"] == 1:
        return loss

    def gather(path: tuple[Any, ...], leaf: Any) -> Any:
        at_rest, in_use = (
            NamedSharding(mesh, spec(path_of(path), leaf.shape, mesh))
            for spec in (partition_spec, spec_in_use)
        )
        if leaf.ndim > 1:  # and is split still, or XLA would gather first
            leaf = lax.with_sharding_constraint(leaf.astype(dtype), at_rest)
        return checkpoint_name(lax.with_sharding_constraint(leaf, in_use), "gathered")

    def gathered_loss(params: Any, *rest: Any) -> Any:
        return loss(jax.tree_util.tree_map_with_path(gather, params), *rest)

    policy = jax.checkpoint_policies.save_anything_except_these_names("gathered")
    return jax.checkpoint(gathered_loss, policy=policy)


def local_rows(batch_size: int, mesh: Mesh) -> slice:
    """The rows of a batch that this process's devices need."""
    sharding = NamedSharding(mesh, P(ROWS))
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    ranges = [index[0].indices(batch_size) for index in indices if index]
    return slice(min(r[0] for r in ranges), max(r[1] for r in ranges))


def put(batch: dict[str, np.ndarray], batch_size: int, mesh: Mesh) -> dict[str, Any]:
    """Moves local_rows of batches, leaves (K, b, ...), to the devices: leaves (K, B, ...)."""
    sharding, rows = batch_sharding(mesh), local_rows(batch_size, mesh)

    def put_leaf(leaf: np.ndarray) -> Any:
        def shard(index: Any) -> np.ndarray:
            first, end, _ = index[1].indices(batch_size)
            return leaf[:, first - rows.start : end - rows.start]

        shape = (leaf.shape[0], batch_size, *leaf.shape[2:])
        return jax.make_array_from_callback(shape, sharding, shard)

    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {name: put_leaf(leaf) for name, leaf in batch.items()}


def describe(mesh: Mesh) -> str:
    """In words: "cpu (2 cores)", "2 processes x 4 x cpu as data 2 x fsdp 2 x model 2"."""
    if mesh.size == 1:
        return devices.describe()
    layout = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    n_processes = jax.process_count()
    of_each = f"{mesh.size // n_processes} x {jax.devices()[0].device_kind} as {layout}"
    return f"{n_processes} processes x {of_each}" if n_processes > 1 else of_each


def bytes_per_device(shapes: Any) -> int:
    """Bytes of each device's part of arrays, or of shapes with a sharding."""
    leaves = jax.tree.leaves(shapes)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )
