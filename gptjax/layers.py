"""The simple parts of a Transformer: Linear, Norm, Embed, Dropout, MLP.

Array names end in their dimensions:
    B batch   T target position   S source position   V vocabulary
    D model width   H heads   K head width   F hidden width of the MLP   M mel band

Modules are Flax Linen, used purely functionally: `model.init` makes a pytree of parameters and
`model.apply` computes. Parameters are float32, or after training smaller (quant_array.py);
`dtype` is that of activations and matmuls.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.config import GPTConfig
from gptjax.quantization.quant_array import QuantArray

# A look-up's gradient is a scatter-add, which GPUs (and XLA on them above all) do slowly when
# few rows receive many updates. Up to this many rows, a matmul with one-hot rows is faster.
ONE_HOT_ROWS = 512


def parameter(
    module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]
) -> Any:
    """module.param(...), or the QuantArray in its place, which Flax would find of a wrong shape."""
    value = module.get_variable("params", name)
    return value if isinstance(value, QuantArray) else module.param(name, init, shape)


class Linear(nn.Module):
    """y = x W + b over the last axis, (..., D) -> (..., features).

    Initialised as PyTorch's nn.Linear is, W and b uniform in +-1/sqrt(fan in), or at zero.
    """

    features: int
    bias: bool = True
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        fan_in = x.shape[-1]

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            bound = 0.0 if self.zero_init else fan_in**-0.5
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        kernel = parameter(self, "kernel", uniform, (fan_in, self.features))
        # In two dimensions: XLA's CPU backend copies to transpose a gradient of more.
        y = x.reshape(-1, fan_in) @ kernel.astype(self.dtype)
        if self.bias:
            y = y + self.param("bias", uniform, (self.features,)).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Norm(nn.Module):
    """Layer normalisation (Ba et al. 2016) or RMS normalisation (Zhang & Sennrich 2019).

    (..., D) -> (..., D), statistics in float32 whatever the dtype.
    """

    config: GPTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = x.astype(jnp.float32)
        if self.config.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = rms_normalize(x) * self.param("scale", nn.initializers.ones, (width,))
        if self.config.norm == "layernorm" and self.config.bias:
            x = x + self.param("bias", nn.initializers.zeros, (width,))
        return x.astype(self.dtype)


class Embed(nn.Module):
    """A table of `rows` vectors of width `features`: ids (...) -> (..., features).

    Normally distributed at first, with standard deviation `scale`.
    """

    rows: int
    features: int
    dtype: Any = jnp.float32
    scale: float = 1.0

    def setup(self) -> None:
        normal = nn.initializers.normal(self.scale)
        self.table_VD = parameter(self, "table", normal, (self.rows, self.features))

    def __call__(self, ids: Array) -> Array:
        table_VD = self.table_VD.astype(self.dtype)
        # A QuantArray is looked up in any case: nobody differentiates it.
        if self.rows > ONE_HOT_ROWS or isinstance(table_VD, QuantArray):
            return table_VD[ids].astype(self.dtype)
        # In two dimensions, as in Linear.
        one_hot = jax.nn.one_hot(ids.reshape(-1), self.rows, dtype=self.dtype)
        # HIGHEST: without it a GPU rounds a float32 table to 10 bits of mantissa.
        y = jnp.dot(one_hot, table_VD, precision=lax.Precision.HIGHEST)
        return y.reshape(*ids.shape, self.features)

    def attend(self, x: Array) -> Array:
        """The products of vectors (..., D) with every row of the table: (..., rows)."""
        y = x.reshape(-1, self.features) @ self.table_VD.astype(self.dtype).T
        return y.reshape(*x.shape[:-1], self.rows)


class Dropout(nn.Module):
    """Zeroes a share `rate` of x, scales the rest to keep the mean (Srivastava et al. 2014).

    x is (B, ...), and rows_B are the numbers that its rows have in the batch of the step: the mask
    of a row depends on the key and on that number alone, not on how many rows a micro-batch or a
    device has. Without rows_B nothing is dropped.

    One random byte decides for each number, so the rate is rounded to a multiple of 1/256: JAX's
    generator makes 32 bits at a time, and on a CPU making them all would cost as much as a third
    of the step.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, rows_B: Array | None) -> Array:
        n_dropped = min(round(256 * self.rate), 255)
        if rows_B is None or not n_dropped:
            return x
        key, (*inner, width) = self.make_rng("dropout"), x.shape[1:]

        def words(row: Array) -> Array:
            return jax.random.bits(jax.random.fold_in(key, row), (*inner, -(-width // 4)))

        words_B = jax.vmap(words)(rows_B)
        bytes_ = lax.bitcast_convert_type(words_B, jnp.uint8)
        bytes_ = bytes_.reshape(*x.shape[:-1], -1)[..., :width]
        return jnp.where(bytes_ < n_dropped, 0, x * (256 / (256 - n_dropped)))


class MLP(nn.Module):
    """Two linear maps with a non-linearity between them, (B, T, D) -> (B, T, D).

    relu2 is the squared ReLU of Primer (So et al. 2021). swiglu (Shazeer 2020) multiplies the
    hidden values by a gate, silu of a third linear map.
    """

    config: GPTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        c = self.config
        n_hidden = c.hidden_width
        h_BTF = Linear(n_hidden, c.bias, dtype=self.dtype, name="hidden")(x_BTD)
        match c.activation:
            case "relu":
                h_BTF = jax.nn.relu(h_BTF)
            case "gelu" | "gelu_tanh":
                h_BTF = jax.nn.gelu(h_BTF, approximate=c.activation == "gelu_tanh")
            case "relu2":
                h_BTF = jax.nn.relu(h_BTF) ** 2
            case "swiglu":
                gate_BTF = Linear(n_hidden, c.bias, dtype=self.dtype, name="gate")(x_BTD)
                h_BTF = jax.nn.silu(gate_BTF) * h_BTF
        return Linear(c.n_embd, c.bias, c.zero_init, self.dtype, name="output")(h_BTF)


def rms_normalize(x: Array) -> Array:
    """x / sqrt(mean(x^2) + 1e-5) over the last axis, computed in float32, in x's dtype."""
    x32 = x.astype(jnp.float32)
    return (x32 * lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + 1e-5)).astype(x.dtype)
