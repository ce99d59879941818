"""An ensemble: models of one architecture that train side by side and answer together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from gptjax.scale import devices


@dataclass(frozen=True)
class Ensemble:
    """N models of one architecture, called as one. Parameters have leaves (N, ...).

    Its probabilities are the mean of its members' (deep ensembles, Lakshminarayanan et al. 2017,
    arXiv:1612.01474). Members differ in their initial parameters and dropout masks; they see the
    same batches.
    """

    member: Any
    n_members: int

    @property
    def config(self) -> Any:
        """The configuration of every member."""
        return self.member.config

    @property
    def vocab_size(self) -> int:
        return self.member.vocab_size

    @property
    def dtype(self) -> Any:
        return self.member.dtype

    def apply(
        self, variables: Any, tokens_BT: Array, cache: Any = None, **inputs: Any
    ) -> tuple[Array, Any]:
        """(log of the mean probabilities (B, T, V), the cache), as from one model's `apply`.

        There is no dropout: members train one by one, see `each_gradient`.
        """
        params = variables["params"]
        if cache is None:
            logits_NBTV = over_members(
                lambda params: self.member.apply({"params": params}, tokens_BT, **inputs)[0]
            )(params)
        else:
            # The caches of all members, one after the other: a list of blocks like that of one
            # model, so that decoding need not know of members.
            n_blocks = len(cache) // self.n_members
            blocks = [cache[i * n_blocks : (i + 1) * n_blocks] for i in range(self.n_members)]
            made = [
                self.member.apply({"params": member(params, i)}, tokens_BT, blocks[i], **inputs)
                for i in range(self.n_members)
            ]
            logits_NBTV = jnp.stack([logits_BTV for logits_BTV, _ in made])
            cache = tuple(block for _, blocks in made for block in blocks)
        return log_mean_probability(logits_NBTV), cache

    def init_cache(self, batch_size: int) -> Any:
        """Empty caches of all members, one after the other."""
        return self.member.init_cache(batch_size) * self.n_members

    def each_gradient(self, loss_and_gradient: Callable[..., Any]) -> Callable[..., Any]:
        """From one model's gradient to that of every member.

        loss_and_gradient(params, batch, dropout_key, rows_B) returns ((loss sum, weight sum),
        gradient), as does the result: the mean of the loss sums, and gradients (N, ...), each of
        its member's own loss.
        """

        def gradients(params: Any, batch: Any, dropout_key: Array, rows_B: Array) -> Any:
            def one(params_and_number: Any) -> Any:
                params, i = params_and_number
                key = jax.random.fold_in(dropout_key, i)
                return loss_and_gradient(params, batch, key, rows_B)

            sums, grads = over_members(one)((params, jnp.arange(self.n_members)))
            return jax.tree.map(jnp.mean, sums), grads

        return gradients

    def each_optimizer(self, optimizer: optax.GradientTransformation) -> Any:
        """From one model's optimizer to one for each member, with a state (N, ...)."""

        def update(grads: Any, state: Any, params: Any = None) -> Any:
            return over_members(lambda of_one: optimizer.update(*of_one))((grads, state, params))

        init: Any = over_members(optimizer.init)
        return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def over_members(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function` of one member's arrays, over the first axis of all leaves.

    On a GPU for all members at once, in larger matmuls. A CPU is busy with one member, and its
    caches are full: there one after the other.
    """
    if devices.on_cpu():
        return lambda tree: lax.map(function, tree)
    return jax.vmap(function)


def member(params: Any, i: int) -> Any:
    """The parameters of one member."""
    return jax.tree.map(lambda leaf: leaf[i], params)


def log_mean_probability(logits_NBTV: Array) -> Array:
    """Logits (B, T, V) whose softmax is the mean of the members' probabilities."""
    return jax.nn.logsumexp(jax.nn.log_softmax(logits_NBTV), axis=0) - jnp.log(len(logits_NBTV))


def one_model(model: Any) -> Any:
    """The model itself or, of an ensemble, that of every member."""
    return model.member if isinstance(model, Ensemble) else model


def first_member(model: Any, params: Any) -> tuple[Any, Any]:
    """The model itself or, of an ensemble, its first member: for what is inside of one model."""
    return one_model(model), member(params, 0) if isinstance(model, Ensemble) else params
