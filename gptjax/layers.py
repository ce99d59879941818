"""The simple parts of a Transformer: Linear, Norm, Embed, Dropout, MLP.

Array names end in their dimensions:
    B batch   T target position   S source position   V vocabulary
    D model width   H heads   K head width   F hidden width of the MLP   M mel band

Modules are Flax Linen, used purely functionally: `model.init` makes a pytree of parameters and
`model.apply` computes with them. Parameters are float32; `dtype` is that of activations and
matmuls.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.config import GPTConfig
from gptjax.kernels.dropout import dropout
from gptjax.quantization.quant_array import parameter

# Embeddings of up to this many rows are looked up by a matmul with one-hot rows. The gradient of
# an ordinary lookup is a scatter-add, which GPUs do slowly when few rows receive many updates.
ONE_HOT_ROWS = 512


class Linear(nn.Module):
    """y = x W + b over the last axis: (..., D) -> (..., features).

    Initialized like PyTorch's nn.Linear: W and b uniform in +-1/sqrt(fan in), or zero.
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

        # self.param(...), or the quantized array that stands in for it.
        kernel = parameter(self, "kernel", uniform, (fan_in, self.features))
        # In two dimensions: XLA's CPU backend copies to transpose a gradient of more.
        y = x.reshape(-1, fan_in) @ kernel.astype(self.dtype)
        if self.bias:
            y = y + self.param("bias", uniform, (self.features,)).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Norm(nn.Module):
    """Layer normalization (Ba et al. 2016) or RMS normalization (Zhang & Sennrich 2019).

    (..., D) -> (..., D). Statistics are float32 for every dtype.
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


def rms_normalize(x: Array) -> Array:
    """x / sqrt(mean(x^2) + 1e-5) over the last axis, computed in float32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    return (x32 * lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + 1e-5)).astype(x.dtype)


class Embed(nn.Module):
    """A table of `rows` vectors of width `features`: ids (...) -> (..., features).

    Initialized from a normal distribution with standard deviation `scale`.
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
        # A quantized table is never differentiated, so its lookup is fast at any size.
        if self.rows > ONE_HOT_ROWS or not isinstance(table_VD, Array):
            return table_VD[ids].astype(self.dtype)
        one_hot = jax.nn.one_hot(ids.reshape(-1), self.rows, dtype=self.dtype)
        # HIGHEST: without it a GPU rounds a float32 table to 10 bits of mantissa.
        y = jnp.dot(one_hot, table_VD, precision=lax.Precision.HIGHEST)
        return y.reshape(*ids.shape, self.features)

    def attend(self, x: Array) -> Array:
        """The table as an output head (Press & Wolf 2017): (..., features) -> (..., rows)."""
        y = x.reshape(-1, self.features) @ self.table_VD.astype(self.dtype).T
        return y.reshape(*x.shape[:-1], self.rows)


class Dropout(nn.Module):
    """Zeroes a share `rate` of x, scales the rest to keep the mean (Srivastava et al. 2014).

    x is (B, ...). rows_B are the numbers that its rows have in the whole batch of the step: the
    mask of a row depends on the step's key and on that number alone, so it is the same for every
    micro-batch size and number of devices. Without rows_B, as in evaluation, nothing is dropped.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, rows_B: Array | None) -> Array:
        if rows_B is None or not self.rate:
            return x
        # Flax folds the module's path into the key: every layer has masks of its own.
        return dropout(x, self.rate, self.make_rng("dropout"), rows_B)


class MLP(nn.Module):
    """Two linear maps with a non-linearity between them: (B, T, D) -> (B, T, D).

    relu2 is the squared ReLU of Primer (So et al. 2021). swiglu (Shazeer 2020) multiplies the
    hidden values by a gate: SiLU of a third linear map.
    """

    config: GPTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        c = self.config
        h_BTF = Linear(c.hidden_width, c.bias, dtype=self.dtype, name="hidden")(x_BTD)
        match c.activation:
            case "relu":
                h_BTF = jax.nn.relu(h_BTF)
            case "gelu" | "gelu_tanh":
                h_BTF = jax.nn.gelu(h_BTF, approximate=c.activation == "gelu_tanh")
            case "relu2":
                h_BTF = jax.nn.relu(h_BTF) ** 2
            case "swiglu":
                gate_BTF = Linear(c.hidden_width, c.bias, dtype=self.dtype, name="gate")(x_BTD)
                h_BTF = jax.nn.silu(gate_BTF) * h_BTF
        return Linear(c.n_embd, c.bias, c.zero_init, self.dtype, name="output")(h_BTF)
