"""Optimizers and schedules, put together from optax."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.config import OptimConfig
from gptjax.kernels.merging import global_norm
from gptjax.muon import scale_by_muon
from gptjax.scale import devices


def schedule(config: OptimConfig, max_steps: int, peak: float) -> optax.Schedule:
    """Learning rate by step: linear warm-up to `peak`, constant, then the decay, if any."""
    decay_steps = max(1, round(config.decay_fraction * max_steps))
    body = constant = optax.constant_schedule(peak)
    match config.schedule:
        case "constant":
            decay = None
        case "linear":
            decay = optax.linear_schedule(peak, peak * config.final_fraction, decay_steps)
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, decay_steps, config.final_fraction)
        case _:
            raise ValueError(f"unknown schedule {config.schedule!r}")
    if decay:
        body = optax.join_schedules([constant, decay], [max_steps - decay_steps])
    if not config.warmup_steps:
        return body
    # (step + 1) / warmup: the first step already moves.
    return lambda step: body(step) * jnp.minimum(1.0, (step + 1) / config.warmup_steps)


def build(config: OptimConfig, max_steps: int) -> optax.GradientTransformation:
    """The optimizer that a configuration describes.

    AdamW (Loshchilov & Hutter 2019) decays matrices only. Muon (Jordan et al. 2024) moves each
    matrix of a block along the nearest orthogonal matrix to its averaged gradient; embeddings,
    output head and vectors stay with AdamW.
    """
    rate = schedule(config, max_steps, config.learning_rate)
    adamw = optax.adamw(rate, b2=config.beta2, weight_decay=config.weight_decay, mask=is_matrix)
    match config.name:
        case "adamw":
            transform = adamw
        case "muon":
            muon_rate = schedule(config, max_steps, config.muon_learning_rate)
            # Matrix units want bfloat16. XLA's CPU backend gains nothing from it.
            dtype = jnp.float32 if devices.on_cpu() else jnp.bfloat16
            muon = optax.chain(
                scale_by_muon(dtype),
                optax.add_decayed_weights(config.weight_decay),
                optax.scale_by_learning_rate(muon_rate),
            )
            transform = optax.partition({"muon": stacked(muon), "adamw": adamw}, muon_or_adamw)
        case _:
            raise ValueError(f"unknown optimizer {config.name!r}")
    # A link even without clipping: turning it on must not change the tree of the state, or a
    # run that diverged could not resume with it.
    clip = clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
    return optax.chain(clip, transform)


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """As optax.clip_by_global_norm (Pascanu et al. 2013), with the norm that a step reports."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        norm = global_norm(updates)
        clip = partial(jnp.where, norm < limit)
        return jax.tree.map(lambda x: clip(x, x / norm * limit), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def stacked(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, applied to stacks (N, rows, columns) of the N matrices of each shape.

    Muon's matmuls are small, and there are fifteen for each matrix; in batches they keep a CPU
    busier.
    """

    def stack(tree: Any) -> dict[str, Any]:
        groups: dict[str, list[Any]] = {}
        for leaf in jax.tree.leaves(tree):
            groups.setdefault(str(leaf.shape), []).append(leaf)
        return {shape: jnp.stack(leaves) for shape, leaves in groups.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stacks: Any
        stacks, state = inner.update(stack(updates), state, stack(params))
        leaves = {shape: iter(stacks[shape]) for shape in stacks}
        return jax.tree.map(lambda leaf: next(leaves[str(leaf.shape)]), updates), state

    return optax.GradientTransformation(lambda params: inner.init(stack(params)), update)


def is_matrix(params: Any) -> Any:
    """True for parameters of two dimensions: those that weight decay applies to."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def muon_or_adamw(params: Any) -> Any:
    """Which optimizer moves a parameter: "muon" the matrices of blocks, "adamw" the others."""

    def label(path: tuple[Any, ...], p: Any) -> str:
        in_block = "block_" in jax.tree_util.keystr(path)
        return "muon" if in_block and p.ndim == 2 else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)
