"""The loss of next-token prediction, with a gradient that makes no array but itself.

Array names: B batch, T position, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.custom_vjp
def token_losses(logits_BTV: Array, targets_BT: Array) -> Array:
    """Cross-entropy in nats of each target: (B, T) float32.

    Written so that XLA reads the logits (bfloat16 on a GPU) and converts them on the way: the
    target's logit is picked by a comparison inside of a sum. The gather that optax has gets a
    scatter as its gradient, which wants float32 logits in memory: 3.3 GB for 16,384 positions of
    GPT-2's 50,257 tokens.
    """
    return _forward(logits_BTV, targets_BT)[0]


def _is_target(logits_BTV: Array, targets_BT: Array) -> Array:
    token = lax.broadcasted_iota(jnp.int32, logits_BTV.shape, logits_BTV.ndim - 1)
    return token == targets_BT[..., None]


def _forward(logits_BTV: Array, targets_BT: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    logits32 = logits_BTV.astype(jnp.float32)
    largest = logits32.max(-1)
    log_sum = jnp.log(jnp.exp(logits32 - largest[..., None]).sum(-1)) + largest
    target = jnp.where(_is_target(logits_BTV, targets_BT), logits32, 0).sum(-1)
    return log_sum - target, (logits_BTV, targets_BT, log_sum)


def _backward(residuals: tuple[Array, Array, Array], d_losses: Array) -> tuple[Array, None]:
    logits_BTV, targets_BT, log_sum = residuals
    probabilities = jnp.exp(logits_BTV.astype(jnp.float32) - log_sum[..., None])
    error = probabilities - _is_target(logits_BTV, targets_BT)
    return (error * d_losses[..., None]).astype(logits_BTV.dtype), None


token_losses.defvjp(_forward, _backward)


def distillation_losses(logits_BTV: Array, teacher_BTV: Array) -> Array:
    """Cross-entropy in nats with a teacher's probabilities instead of one target: (B, T) float32.

    Its gradient is the difference of the probabilities (Hinton et al. 2015, eq. 2, at T = 1).
    """
    return -jnp.sum(teacher_BTV * jax.nn.log_softmax(logits_BTV.astype(jnp.float32)), -1)


TRAINING_HEADS = ["ahead", "frames"]
"""Collections with the logits of the heads that only training uses. See below."""


def gradient_of_training_heads(sown: Any, batch: dict[str, Array]) -> Array:
    """A sum of losses of value zero that has the gradient of the heads that only training uses.

    Nobody reads their answers, so their loss does not count as the model's.

    sown["ahead"]: the i-th leaf (B, T, V) has the logits of token t + 2 + i at position t.
    batch["ahead_weight"] (B,) is the weight of each head's loss next to 1 of the next token's. Such
    heads make the model keep what it will need later (Gloeckle et al. 2024, arXiv:2404.19737).

    sown["frames"]: one leaf (B, S, V) with the logits of the token that sounds at each position of
    the encoder, which is batch["frames"] (B, S). batch["frame_weights"] (B, S) are the weights.
    """
    total = jnp.float32(0)
    for i, logits_BTV in enumerate(jax.tree.leaves(sown.get("ahead")), start=1):
        losses_BT = token_losses(logits_BTV[:, :-i], batch["targets"][:, i:])
        weights_BT = batch["loss_weights"][:, i:] * batch["ahead_weight"][:, None]
        total += jnp.sum(losses_BT * weights_BT)
    for logits_BSV in jax.tree.leaves(sown.get("frames")):
        total += jnp.sum(token_losses(logits_BSV, batch["frames"]) * batch["frame_weights"])
    return total - lax.stop_gradient(total)
