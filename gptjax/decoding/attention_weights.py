"""The attention weights that a model computes, as arrays.

Every attention module sows its weights as "weights"; the functions here make "intermediates"
mutable and collect them. Of an ensemble they are those of its first member.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.ensemble import first_member
from gptjax.models import GPT, EncoderDecoder, SpeechRecognizer


def self_attention(model: GPT, params: Any, tokens_T: np.ndarray) -> np.ndarray:
    """Weights (layer, H, T, T) of a text: row t is how position t attends to positions 0 ... t."""
    model, params = first_member(model, params)
    blocks = jax.device_get(_intermediates(model, params, np.asarray(tokens_T)[None]))
    n_target, layers = len(tokens_T), []
    for i in range(model.config.n_layer):
        # On a CPU the queries come in several chunks, each with the keys up to its last query.
        chunks: Any = blocks[f"block_{i}"]["attention"]["weights"]
        later_keys = [((0, 0), (0, 0), (0, n_target - chunk.shape[-1])) for chunk in chunks]
        rows = [np.pad(chunk[0], pad) for chunk, pad in zip(chunks, later_keys, strict=True)]
        layers.append(np.concatenate(rows, axis=1))
    return np.stack(layers).astype(np.float32)


@functools.partial(jax.jit, static_argnames="model")
def _intermediates(model: GPT, params: Any, tokens_BT: Any) -> Any:
    return model.apply({"params": params}, tokens_BT, mutable="intermediates")[1]["intermediates"]


@functools.partial(jax.jit, static_argnames="model")
def cross_attention(
    model: EncoderDecoder | SpeechRecognizer,
    params: Any,
    tokens_BT: Any,
    source: Any,
    source_mask: Any,
) -> jax.Array:
    """Weights (B, layer, H, T, S), float32, of the decoder's tokens over the encoder's positions.

    Row t belongs to the prediction of the token that follows token t. `source` and `source_mask`
    are the model's: (B, S) tokens, or (B, T, M) log-mel frames with a mask (B, T).
    """
    model, params = first_member(model, params)
    _, sown = model.apply(
        {"params": params},
        tokens_BT,
        source=source,
        source_mask=source_mask,
        mutable="intermediates",
    )
    decoder: Any = sown["intermediates"]["decoder"]
    layers = [decoder[f"block_{i}"]["cross_attention"] for i in range(model.config.n_layer)]
    return jnp.stack([layer["weights"][0] for layer in layers], axis=1).astype(jnp.float32)
