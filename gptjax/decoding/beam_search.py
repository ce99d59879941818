"""Beam search with a KV cache: from sources to targets. A beam of one is greedy decoding."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gptjax.cache import BlockCache
from gptjax.data.tokenizer import PairTokenizer, SpeechTokenizer
from gptjax.errors import UserError
from gptjax.models import EncoderDecoder, SpeechRecognizer
from gptjax.scale import sharding

# Sources in one batch, and the multiple that their length is padded to. Both are fixed, because
# every further shape has to be compiled.
BATCH_SIZE, LENGTH_STEP = 128, 8
MOST_BEAMS = 100


class Beams(NamedTuple):
    """The N best targets of each of B sources, best first."""

    tokens_BNT: Array
    """The tokens after the first boundary; those after a target's own boundary have no meaning."""
    length_BN: Array
    """Number of tokens, including the boundary at the end."""
    log_probability_BN: Array
    score_BN: Array
    """log_probability / length ** length_penalty, by which beams are ranked."""


class Hypothesis(NamedTuple):
    """One target for a source."""

    text: str
    score: float
    log_probability: float
    ids: np.ndarray
    """Its tokens, without a boundary."""


@functools.partial(jax.jit, static_argnames=("model", "beam_size"))
def beam_search(
    model: EncoderDecoder | SpeechRecognizer,
    params: Any,
    source: Array,
    source_mask_BS: Array,
    boundary: int,
    beam_size: int = 1,
    length_penalty: float = 1.0,
    start_P: Array | None = None,
) -> Beams:
    """The beam_size best targets: in every step, all prefixes are extended and the best are kept.

    A prefix that reaches the boundary stays in the beam while its score is among the best
    (Graves 2012; the length penalty is the simplest form of that of Wu et al. 2016). A target
    follows start_P (by default the boundary alone) and ends at block_size tokens at the latest.
    `source` is the model's, (B, S) or (B, S, M). The encoder, and the keys and values of
    cross-attention, are computed once per source.
    """
    if start_P is None:
        start_P = jnp.full(1, boundary, jnp.int32)
    n_batch, n_beam = source.shape[0], beam_size
    n_target = model.config.block_size - len(start_P) + 1
    vocab_size = model.vocab_size
    first_of_source = jnp.arange(n_batch)[:, None] * n_beam
    mask_RS = jnp.repeat(source_mask_BS, n_beam, axis=0)  # R: every beam of every source

    def is_done(beams: Beams) -> Array:
        """Which beams end with the boundary."""
        last_BN = jnp.take_along_axis(beams.tokens_BNT, beams.length_BN[..., None] - 1, axis=2)
        return (beams.length_BN > 0) & (last_BN[..., 0] == boundary)

    def step(t: Array, beams: Beams, last_logits_RV: Array) -> tuple[Beams, Array]:
        """The beams, extended by one token, and the row (R,) that each of them continues."""
        log_p_BNV = jax.nn.log_softmax(last_logits_RV.reshape(n_batch, n_beam, vocab_size))
        done_BN = is_done(beams)
        nothing_more_V = jnp.where(jnp.arange(vocab_size) == boundary, 0.0, -jnp.inf)
        log_p_BNV = jnp.where(done_BN[..., None], nothing_more_V, log_p_BNV)
        log_p_BNV += beams.log_probability_BN[..., None]
        length_BN = beams.length_BN + ~done_BN
        score_BNV = log_p_BNV / length_BN[..., None] ** length_penalty
        score_BN, chosen_BN = lax.top_k(score_BNV.reshape(n_batch, -1), n_beam)
        parent_BN, token_BN = chosen_BN // vocab_size, chosen_BN % vocab_size
        tokens_BNT = jnp.take_along_axis(beams.tokens_BNT, parent_BN[..., None], axis=1)
        log_p_BN = jnp.take_along_axis(log_p_BNV.reshape(n_batch, -1), chosen_BN, axis=1)
        length_BN = jnp.take_along_axis(length_BN, parent_BN, axis=1)
        new = Beams(tokens_BNT.at[..., t].set(token_BN), length_BN, log_p_BN, score_BN)
        return new, (first_of_source + parent_BN).reshape(-1)

    def unfinished(carry: tuple[Array, Beams, Any]) -> Array:
        t, beams, _ = carry
        return (t < n_target) & ~is_done(beams).all()

    def extend(carry: tuple[Array, Beams, Any]) -> tuple[Array, Beams, Any]:
        t, beams, cache = carry
        tokens_R1 = beams.tokens_BNT[..., t - 1].reshape(-1, 1)
        made: Any = model.apply({"params": params}, tokens_R1, cache, source_mask=mask_RS)
        logits_R1V, cache = made
        beams, parents_R = step(t, beams, logits_R1V[:, 0])
        if n_beam > 1:
            cache = tuple(_reordered(layer, parents_R) for layer in cache)
        return t + 1, beams, cache

    cache: Any
    logits_BPV, cache = model.apply(
        {"params": params},
        jnp.broadcast_to(start_P, (n_batch, len(start_P))),
        model.init_cache(n_batch),
        source=source,
        source_mask=source_mask_BS,
    )
    repeated_R = jnp.repeat(jnp.arange(n_batch), n_beam)
    if n_beam > 1:
        cache = tuple(layer.take(repeated_R) for layer in cache)
    beams = Beams(
        jnp.full((n_batch, n_beam, n_target), boundary, jnp.int32),
        jnp.zeros((n_batch, n_beam), jnp.int32),
        # At the start there is one prefix, not n_beam equal ones.
        jnp.where(jnp.arange(n_beam) == 0, 0.0, -jnp.inf) + jnp.zeros((n_batch, n_beam)),
        jnp.zeros((n_batch, n_beam)),
    )
    beams, _ = step(jnp.int32(0), beams, logits_BPV[repeated_R, -1])
    _, beams, _ = lax.while_loop(unfinished, extend, (jnp.int32(1), beams, cache))
    return sharding.replicate(beams)


def _reordered(layer: BlockCache, parents_R: Array) -> BlockCache:
    """The cache, with its rows in the order of the new beams.

    All beams of a source share the keys and values of its encoder output, which stay in place.
    """
    shared = layer.encoder_keys_values
    reordered = layer._replace(encoder_keys_values=None).take(parents_R)
    return reordered._replace(encoder_keys_values=shared)


def check(beam_size: int, length_penalty: float) -> None:
    """Raises UserError for a value out of range."""
    if not 1 <= beam_size <= MOST_BEAMS:
        raise UserError(f"--beam is {beam_size}, but must be in [1, {MOST_BEAMS}]")
    if not 0 <= length_penalty <= 10:  # length to a higher power is too much for float32
        raise UserError(f"--length-penalty is {length_penalty}, but must be in [0, 10]")


def transduce(
    model: EncoderDecoder,
    params: Any,
    tok: PairTokenizer,
    sources: Sequence[str],
    beam_size: int = 1,
    length_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """The beam_size best targets of each source, best first.

    Raises UserError for a source with unknown or too many tokens.
    """
    ids = [tok.encode_source(source, model.config.source_block_size) for source in sources]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: list[list[Hypothesis]] = [[] for _ in sources]
    batch_size = min(BATCH_SIZE, 1 << max(0, len(ids) - 1).bit_length())
    for first in range(0, len(order), batch_size):
        part = order[first : first + batch_size]
        longest = len(ids[part[-1]])
        width = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, model.config.source_block_size)
        rows = part + part[-1:] * (batch_size - len(part))
        source_BS = np.stack([np.pad(ids[i], (0, width - len(ids[i]))) for i in rows])
        mask_BS = np.arange(width) < np.array([len(ids[i]) for i in rows])[:, None]
        beams = jax.device_get(
            beam_search(model, params, source_BS, mask_BS, tok.boundary, beam_size, length_penalty)
        )
        for b, i in enumerate(part):
            found[i] = hypotheses(tok, beams, b)
    return found


def hypotheses(tok: PairTokenizer | SpeechTokenizer, beams: Beams, row: int) -> list[Hypothesis]:
    """The targets of one row of the batch, best first; `beams` is on the host."""
    found = []
    for n in np.flatnonzero(np.isfinite(beams.log_probability_BN[row])):
        ids = np.asarray(beams.tokens_BNT[row, n, : beams.length_BN[row, n]])
        if ids[-1] == tok.end:  # a target of the full length has no boundary
            ids = ids[:-1]
        log_probability = float(beams.log_probability_BN[row, n])
        score = float(beams.score_BN[row, n])
        found.append(Hypothesis(tok.target.decode(ids), score, log_probability, ids))
    return found
