"""Short convolutions: an option that mixes each position with its neighbours."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gptjax.cache import BlockCache
from gptjax.kernels.sums import spread


class ShortConv(nn.Module):
    """y_t = x_t + sum_j w_j x_(t-j) per channel: (B, T, D) -> (B, T, D), and the cache.

    A depthwise convolution that starts as the identity. It shows each position its neighbours
    before attention has learned to look for them: the Canon layer of Allen-Zhu (2025,
    arXiv:2512.17351); with width 2 the token shift of RWKV (Peng et al. 2023, arXiv:2305.13048).
    If causal, j is 1 ... width - 1. Otherwise half of the neighbours come after, and those where
    mask_BT is false count as zero. With width 0 this is the identity.

    The module's name is that of the cache's array with its earlier inputs.
    """

    width: int
    causal: bool

    @nn.compact
    def __call__(
        self, x_BTD: Array, mask_BT: Array | None = None, cache: BlockCache | None = None
    ) -> tuple[Array, BlockCache | None]:
        if not self.width:
            return x_BTD, cache
        n_batch, n_target, n_embd = x_BTD.shape
        n_after = 0 if self.causal else (self.width - 1) // 2
        n_before = self.width - 1 - n_after
        before = jnp.zeros((n_batch, n_before, n_embd), x_BTD.dtype)
        if cache is not None:
            cache, before = cache.append_input(str(self.name), x_BTD, n_before)
        after = jnp.zeros((n_batch, n_after, n_embd), x_BTD.dtype)
        seen_BTD = x_BTD if mask_BT is None else jnp.where(mask_BT[..., None], x_BTD, 0)
        window = jnp.concatenate([before, seen_BTD, after], axis=1)
        y_BTD = x_BTD
        for j in range(-n_after, n_before + 1):
            if j:  # vectors, like a norm's gain: no weight decay, no Muon
                w_D = self.param(f"w_{j}", nn.initializers.zeros, (n_embd,))
                neighbour_BTD = window[:, n_before - j : n_before - j + n_target]
                y_BTD = y_BTD + spread(w_D, x_BTD) * neighbour_BTD
        return y_BTD, cache
