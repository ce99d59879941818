"""Sampling: a prefill reads the prompt, then a jitted loop decodes with a KV cache of fixed size.

The cache holds block_size positions. As long as the text fits, each token costs one position, and
the result equals decoding without a cache. When the cache is full, the window has to move, and that
changes the position of every token in it, and with it all keys and values, so a new prefill is
needed. By default it reads the last half of the window, which leaves room for block_size / 2 more
cached tokens (a constant cost per token on average). With `exact_window` it reads the last
block_size tokens before every single token, as nanoGPT does.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gptjax.errors import UserError
from gptjax.models import Model
from gptjax.scale import sharding

# Few enough for text to stream smoothly, many enough to hide the cost of a dispatch.
TOKENS_PER_DISPATCH = 16
SHORTEST_PREFILL = 16
TINY = float(np.finfo(np.float32).tiny)
"""Smaller numbers are 0 in XLA's programs."""


@dataclass(frozen=True)
class Sampler:
    """How a next token is drawn from its logits; the filters apply in this order."""

    temperature: float = 1.0
    """Divides the logits. Below 1, likely tokens become likelier; 0 takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens that together reach this probability (nucleus sampling,
    Holtzman et al. 2020)."""

    @property
    def is_greedy(self) -> bool:
        """Also for a temperature that float32 rounds to 0: dividing by it would give NaN."""
        return self.temperature < TINY

    def check(self, vocab_size: int) -> None:
        """Raises UserError for a value out of range."""
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature is {self.temperature}, but must be finite and >= 0")
        if not 0 <= self.top_k <= vocab_size:
            raise UserError(
                f"--top-k is {self.top_k}, but must be in [0, {vocab_size}], the vocabulary"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p is {self.top_p}, but must be in (0, 1]")

    def __call__(self, logits_BV: Array, key: Array) -> Array:
        """Next tokens (B,), int32."""
        if self.is_greedy:
            return jnp.argmax(logits_BV, -1).astype(jnp.int32)
        # With the largest logit at 0, no temperature can overflow.
        logits_BV = (logits_BV - logits_BV.max(-1, keepdims=True)) / self.temperature
        if self.top_k:
            kth_B1 = lax.top_k(logits_BV, self.top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
        if self.top_p < 1:
            top_p = max(self.top_p, TINY)
            sorted_BV = jnp.sort(logits_BV, descending=True)
            p_BV = jax.nn.softmax(sorted_BV)
            # A token stays if those before it do not reach top_p: the first always does.
            kept_BV = jnp.cumsum(p_BV, -1) - p_BV < top_p
            least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), -1, keepdims=True)
            logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
        return jax.random.categorical(key, logits_BV).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "sampler"))
def _prefill(
    model: Model, sampler: Sampler, params: Any, tokens_BT: Array, length: Array, keys: tuple
) -> tuple[Array, Any]:
    """Reads the first `length` of the tokens; returns the next token (B,) and the cache."""
    key, index = keys
    cache: Any = model.init_cache(tokens_BT.shape[0])
    logits_BTV, cache = model.apply({"params": params}, tokens_BT, cache)
    logits_BV = lax.dynamic_index_in_dim(logits_BTV, length - 1, axis=1, keepdims=False)
    # The cache also holds the padding after `length`, but each of these positions is overwritten
    # before a later query sees it.
    cache = tuple(layer._replace(length=length) for layer in cache)
    return sharding.replicate(sampler(logits_BV, jax.random.fold_in(key, index))), cache


@functools.partial(jax.jit, static_argnames=("model", "sampler"), donate_argnames="cache")
def _decode(
    model: Model,
    sampler: Sampler,
    params: Any,
    token_B: Array,
    cache: Any,
    n_tokens: Array,
    keys: tuple,
) -> tuple[Array, Array, Any]:
    """n_tokens steps of the loop; returns tokens (B, TOKENS_PER_DISPATCH), the last, the cache."""
    key, first_index = keys

    def step(i: Array, carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        out_BN, token_B, cache = carry
        logits_B1V, cache = model.apply({"params": params}, token_B[:, None], cache)
        token_B = sampler(logits_B1V[:, 0], jax.random.fold_in(key, first_index + i))
        return out_BN.at[:, i].set(token_B), token_B, cache

    out_BN = jnp.zeros((token_B.shape[0], TOKENS_PER_DISPATCH), jnp.int32)
    out_BN, token_B, cache = lax.fori_loop(0, n_tokens, step, (out_BN, token_B, cache))
    return sharding.replicate(out_BN), sharding.replicate(token_B), cache


def generate(
    model: Model,
    params: Any,
    prompt_BT: np.ndarray,
    n_tokens: int,
    sampler: Sampler | None = None,
    seed: int = 0,
    exact_window: bool = False,
) -> Iterator[np.ndarray]:
    """Continues a batch of prompts of equal length, yielding tokens (B, n) as they are made.

    prompt_BT: int32, at least one token; only the last block_size tokens of it are read.
    The tokens are a function of (params, prompt, sampler, seed); they do not depend on n_tokens.
    In float32, greedy decoding equals decoding without a cache, window by window.
    """
    sampler = sampler or Sampler()
    if sampler.is_greedy:
        sampler = Sampler(temperature=0)  # so that all greedy samplers share one compiled program
    block_size = model.config.block_size
    keep = block_size if exact_window else max(1, block_size // 2)
    key = jax.random.key(seed)
    text_BT = np.asarray(prompt_BT, np.int32)
    made = 0
    window_BT = text_BT[:, -block_size:]
    while made < n_tokens:
        length = window_BT.shape[1]
        bucket = _bucket(length, block_size)
        padded_BT = np.pad(window_BT, ((0, 0), (0, bucket - length)))
        token_B, cache = _prefill(
            model, sampler, params, padded_BT, jnp.int32(length), (key, jnp.int32(made))
        )
        new_BN = np.asarray(token_B)[:, None]
        while True:
            yield new_BN
            made += new_BN.shape[1]
            text_BT = np.concatenate([text_BT, new_BN], axis=1)[:, -block_size:]
            n = min(TOKENS_PER_DISPATCH, n_tokens - made, block_size - length)
            if n <= 0:
                break
            out_BN, token_B, cache = _decode(
                model, sampler, params, token_B, cache, jnp.int32(n), (key, jnp.int32(made))
            )
            length += n
            new_BN = np.asarray(out_BN)[:, :n]
        window_BT = text_BT[:, -keep:]


def _bucket(length: int, block_size: int) -> int:
    """The length that a window is padded to: a power of two, so that few programs compile."""
    return min(block_size, max(SHORTEST_PREFILL, 1 << (length - 1).bit_length()))


def prefill_lengths(block_size: int) -> list[int]:
    """All lengths that windows are padded to."""
    return list(dict.fromkeys(_bucket(length, block_size) for length in range(1, block_size + 1)))


def programs(
    model: Model, params: Any, n_tokens: int, sampler: Sampler
) -> list[Callable[[], jax.stages.Lowered]]:
    """What `generate` runs for a prompt of one token; each lowers to a program to compile.

    params: shapes with their shardings, on one device. Call them in the mesh of `generate`: keys
    and lengths are arrays of that mesh.
    """
    block_size = model.config.block_size
    lengths = [1] if n_tokens < block_size else [1, max(1, block_size // 2)]
    whole = sharding.replicated(jax.tree.leaves(params)[0].sharding.mesh)

    def keys() -> tuple:
        return jax.random.key(0), jnp.int32(0)

    def prefill(bucket: int) -> tuple[Any, ...]:
        return model, sampler, params, np.zeros((1, bucket), np.int32), jnp.int32(1), keys()

    def decode() -> jax.stages.Lowered:
        made = jax.eval_shape(lambda *rest: _prefill(model, sampler, *rest), *prefill(1)[2:])
        token_B, cache = sharding.with_sharding(made, whole)
        return _decode.lower(model, sampler, params, token_B, cache, jnp.int32(1), keys())

    buckets = dict.fromkeys(_bucket(length, block_size) for length in lengths)
    lower = [lambda bucket=bucket: _prefill.lower(*prefill(bucket)) for bucket in buckets]
    return lower if n_tokens < 2 else [*lower, decode]


def complete(
    model: Model, params: Any, prompt_BT: np.ndarray, n_tokens: int, **options: Any
) -> np.ndarray:
    """All tokens of `generate` at once: (B, n_tokens)."""
    return np.concatenate(list(generate(model, params, prompt_BT, n_tokens, **options)), axis=1)
