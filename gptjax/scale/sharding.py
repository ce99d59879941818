"""How parameters and optimizer state are split over a mesh: rules by name, outside the models.

A batch is split by rows over the axes data x fsdp. Parameters, and the optimizer's averages of
them, are split over fsdp x model by the rules below. XLA's partitioner (GSPMD, Xu et al. 2021,
arXiv:2105.04663) then splits the computation and adds the collectives:

    data    every device has whole parameters; gradients are summed (all-reduce)
    fsdp    every device keeps a part of each parameter, gathers it for use and drops it again;
            gradients are summed and split (ZeRO stage 3, Rajbhandari et al. 2020)
    model   every device computes a part of each matmul: some heads of attention, some hidden
            values of the MLP (Megatron-LM, Shoeybi et al. 2019)
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# (end of the path of an array, axes that split its dimensions). Exactly one rule fits each array.
# The optimizer's averages end with the path of their parameter.
RULES = (
    # Kernels are (in, out). Each device makes some heads, or hidden values, of all inputs ...
    (r"\.(query|key|value|hidden|gate)\.kernel", P("fsdp", "model")),
    # ... and from those its part of a sum over all of them.
    (r"\.output\.kernel", P("model", "fsdp")),
    (r"(^|\.)(head|ahead_\d+|frame_head|conv_\d)\.kernel", P("fsdp", "model")),
    # (vocabulary or position, width)
    (r"(^|\.)(token_embedding|position_embedding|table)\.table", P("model", "fsdp")),
    (r"\.(bias|scale|w_-?\d+)", P(("model", "fsdp"))),
    # Muon's stacks of all matrices of one shape: whole matrices on each device if possible.
    (r"\.\(\d+, \d+\)", P(("fsdp", "model"))),
    # The optimizer's counts, the step.
    (r"(^|\.)(count|step)", P()),
)

# Parameters that the model axis also splits in use. Those that add to the residual stream, such as
# a norm's gain, are whole in use: else XLA splits the stream and gathers it for every matmul.
MODEL_PARALLEL = (
    r"(query|key|value|hidden|gate|head)\.(kernel|bias)|output\.kernel|token_embedding\.table"
)


def path_of(path: tuple[Any, ...]) -> str:
    """A path of jax.tree_util as text: "block_0.mlp.hidden.kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def by_path(tree: Any) -> dict[str, Any]:
    """{"block_0.mlp.hidden.kernel": leaf, ...} in the tree's order."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """How an array of a training state is split.

    An axis that does not divide its dimension evenly moves on to the next one that it divides, or
    splits nothing. Raises ValueError unless exactly one rule fits the path.
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
    """How a parameter is split in a computation: over model, if that splits a matmul."""
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


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a training state, or of its parameters."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec = partition_spec(path_of(path), leaf.shape, mesh)
        # On one device what XLA computes is P(): as equal specs, no program compiles twice.
        return NamedSharding(mesh, spec if mesh.size > 1 else P())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """Shapes that carry a sharding each, to restore a checkpoint into.

    shardings: a tree like that of the shapes, or one sharding for all of them.
    """
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        jax.tree.broadcast(shardings, shapes),
    )


def bytes_per_device(shapes: Any) -> int:
    """Bytes of each device's part of arrays, or of shapes with a sharding."""
    leaves = jax.tree.leaves(shapes)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, P())


def replicate(tree: Any, mesh: Mesh | None = None) -> Any:
    """Within jit: makes a tree whole on every device, so that every process can read it.

    The mesh is by default that of jax.set_mesh. Without one, returns the tree unchanged.
    """
    if mesh is None and jax.sharding.get_abstract_mesh().empty:
        return tree
    spec = P() if mesh is None else replicated(mesh)
    return lax.with_sharding_constraint(tree, jax.tree.map(lambda _: spec, tree))


def constrain(tree: Any, mesh: Mesh | None) -> Any:
    """Within jit: keeps the leaves of a training state, or of gradients, split by the rules."""
    if mesh is None or mesh.size == 1:
        return tree
    return lax.with_sharding_constraint(tree, shardings(tree, mesh))


def gather_for_use(loss: Callable[..., Any], mesh: Mesh | None, dtype: Any) -> Callable[..., Any]:
    """`loss(params, ...)` with each parameter gathered where the loss uses it.

    Matrices are cast to the model's dtype before they are sent: bfloat16 halves the traffic. The
    backward pass gathers them again, so a device never has to hold all of them at once.
    """
    if mesh is None or mesh.shape["fsdp"] * mesh.shape["model"] == 1:
        return loss

    def gather(path: tuple[Any, ...], leaf: Any) -> Any:
        at_rest, in_use = (
            NamedSharding(mesh, spec(path_of(path), leaf.shape, mesh))
            for spec in (partition_spec, spec_in_use)
        )
        if leaf.ndim > 1:  # constrained after the cast as well: else XLA gathers, then casts
            leaf = lax.with_sharding_constraint(leaf.astype(dtype), at_rest)
        return checkpoint_name(lax.with_sharding_constraint(leaf, in_use), "gathered")

    def gathered_loss(params: Any, *rest: Any) -> Any:
        return loss(jax.tree_util.tree_map_with_path(gather, params), *rest)

    policy = jax.checkpoint_policies.save_anything_except_these_names("gathered")
    return jax.checkpoint(gathered_loss, policy=policy)
