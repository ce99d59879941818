"""Dropout whose mask is a pure function of (key, row, position), so a mask need not be stored.

The generator is Philox 2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
It turns a counter of two words and a key of one word into two words that look random; any number
can be computed by itself, so forward and backward pass, a GPU kernel and plain jnp all make the
same mask, and XLA computes it inside whatever reads it.

Three steps lead from a JAX key to a mask:

1. Ten rounds turn both words of the step's key and the number of a row into a stream, two words.
   Philox is a bijection of its counter, so two rows of one key never share a stream.
2. A checksum of a layer's path changes the first word: each layer has streams of its own. The
   words of a stream are part of the next counter and its key, so nothing has to be mixed here,
   and a GPU computes the streams of a step once, not in two kernels for each layer.
3. Seven rounds turn the stream and a position in the row's array into one word, four bytes. Seven
   is the fewest that pass BigCrush (Salmon et al., table 2); ten took half as long again.

A byte decides for one number, so rates are multiples of 1/256. Four numbers share a word: those a
quarter of the second-last axis apart. A CPU makes each word once for all four; a GPU, where
arithmetic is cheaper than memory, makes it again for each.

Array names: B batch, T second-last axis, W last axis, Q quarter of T.
"""

import functools
import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gptjax.scale import devices

N_LEVELS = 256
"""A rate is a number of these levels."""
STREAM_ROUNDS = 10
MASK_ROUNDS = 7
MULTIPLIER = 0xD256D193
WEYL = 0x9E3779B9  # added to the key after each round


@functools.partial(jax.jit, static_argnames="rounds")  # traced once for all calls of one shape
def philox(counter_0: Array, counter_1: Array, key: Array, rounds: int) -> tuple[Array, Array]:
    """Philox 2x32: uint32 arrays that broadcast -> two words of the same shape."""
    for i in range(rounds):
        if i:
            key = key + jnp.uint32(WEYL)
        high, low = _multiply(counter_0)
        counter_0, counter_1 = high ^ key ^ counter_1, low
    return counter_0, counter_1


def _multiply(x: Array) -> tuple[Array, Array]:
    """High and low word of x * MULTIPLIER.

    In 64 bits, which JAX has only inside this context: one instruction on a GPU, and on a CPU less
    than half the time of products of 16-bit halves.
    """
    with jax.enable_x64(True):
        product = lax.convert_element_type(x, np.uint64) * np.uint64(MULTIPLIER)
        high = lax.shift_right_logical(product, jnp.full(product.shape, 32, np.uint64))
        return high.astype(np.uint32), product.astype(np.uint32)


def n_dropped(rate: float) -> int:
    """The rate as a number of 256 levels, less than all of them."""
    return min(round(N_LEVELS * rate), N_LEVELS - 1)


def row_streams(key: Array, rows_B: Array) -> Array:
    """The streams (B, 2) uint32 of rows with these numbers in the batch of the step.

    key: a JAX key, of whose data the first and the last word are used (threefry has two).
    """
    words = jax.random.key_data(key)
    row_B = rows_B.astype(jnp.uint32)
    first = jnp.broadcast_to(words[0], row_B.shape)
    streams_B2 = jnp.stack(philox(row_B, first, words[-1], STREAM_ROUNDS), axis=-1)
    # Without the barrier XLA computes them three times, each time in a kernel of its own.
    return lax.optimization_barrier(streams_B2)


def layer_streams(streams_B2: Array, path: tuple[str, ...]) -> Array:
    """The streams of one layer, whose path is that of its Flax module."""
    return streams_B2 ^ np.array([zlib.crc32("/".join(path).encode()), 0], np.uint32)


def position_of(t: Array, n_t: int) -> tuple[Array, Array]:
    """(row of words, shift of the byte in them) of index t of an axis of length n_t."""
    quarter = -(-n_t // 4)
    return t % quarter, 8 * (t // quarter)


def keep_mask(
    streams_B2: Array,
    shape: tuple[int, ...],
    dropped: int,
    first: int = 0,
    whole: tuple[int, int] | None = None,
) -> Array:
    """True where a number stays, with probability 1 - dropped / 256.

    shape: (B, ..., T, W) of the array to mask. It may be a part of an array whose last two axes
    are `whole`: the rows from `first` on, and the first W columns.
    """
    *lead, n_rows, width = shape[1:]
    n_t, stride = whole or (n_rows, width)
    quarter = -(-n_t // 4)
    per_row = (-1, *[1] * (len(shape) - 1))
    stream_0, stream_1 = (streams_B2[:, i].reshape(per_row) for i in range(2))
    n_lead = math.prod(lead)

    def words(rows: Array) -> Array:
        """(B, ..., len(rows), W): the words in these rows of the array of words."""
        outer = jnp.arange(n_lead, dtype=jnp.uint32).reshape(*lead, 1, 1) * jnp.uint32(quarter)
        at = (outer + rows.astype(jnp.uint32)[:, None]) * jnp.uint32(stride)
        at = at + jnp.arange(width, dtype=jnp.uint32)
        return philox(at[None], stream_0, stream_1, MASK_ROUNDS)[0]

    if devices.on_cpu() and n_rows == n_t and n_rows % 4 == 0:
        # Computed once, not inside of whatever reads it, where each word would be made four times.
        words_BQW = lax.optimization_barrier(words(jnp.arange(quarter)))
        words_B4QW = words_BQW[..., None, :, :]
        shifts = 8 * jnp.arange(4, dtype=jnp.uint32)[:, None, None]
        bytes_ = ((words_B4QW >> shifts) & jnp.uint32(255)).reshape(shape)
    else:
        rows, shifts = position_of(jnp.arange(first, first + n_rows), n_t)
        bytes_ = (words(rows) >> shifts.astype(jnp.uint32)[:, None]) & jnp.uint32(255)
    return bytes_ >= jnp.uint32(dropped)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dropout(
    x: Array,
    streams_B2: Array,
    dropped: int,
    first: int = 0,
    whole: tuple[int, int] | None = None,
) -> Array:
    """x (B, ..., T, W) with dropped / 256 of it zeroed and the rest scaled to keep the mean.

    Srivastava et al. 2014. The mask is computed again in the backward pass. `first` and `whole`
    are those of `keep_mask`.
    """
    keep = keep_mask(streams_B2, x.shape, dropped, first, whole)
    return jnp.where(keep, x * jnp.asarray(N_LEVELS / (N_LEVELS - dropped), x.dtype), 0)


def _forward(
    x: Array, streams_B2: Array, dropped: int, first: int, whole: tuple[int, int] | None
) -> tuple[Array, Array]:
    return dropout(x, streams_B2, dropped, first, whole), streams_B2


def _backward(
    dropped: int, first: int, whole: tuple[int, int] | None, streams_B2: Array, dy: Array
) -> tuple[Array, None]:
    # Behind a barrier, or XLA would find that both passes want one mask, and keep it.
    streams_B2 = lax.optimization_barrier(streams_B2)
    return dropout(dy, streams_B2, dropped, first, whole), None


dropout.defvjp(_forward, _backward)


def weight_dropout(
    streams_B2: Array | None, dropped: int, shape: tuple[int, int, int]
) -> Callable[[Array, int], Array]:
    """Returns drop(weights, first): dropout of attention weights, in one piece or by chunks.

    shape: (H, T, S) of all weights of a batch row. A chunk has the positions T from `first` on and
    the first S. Without streams nothing is dropped.
    """
    if streams_B2 is None:
        return lambda weights, first: weights
    if not devices.on_cpu():
        return lambda weights, first: dropout(weights, streams_B2, dropped, first, shape[-2:])
    # One mask for all chunks, which share its words. A CPU may keep it for the backward pass.
    keep = keep_mask(streams_B2, (len(streams_B2), *shape), dropped)
    scale = N_LEVELS / (N_LEVELS - dropped)

    def drop(weights: Array, first: int) -> Array:
        n_rows, n_columns = weights.shape[-2:]
        kept = keep[..., first : first + n_rows, :n_columns]
        return jnp.where(kept, weights * jnp.asarray(scale, weights.dtype), 0)

    return drop
