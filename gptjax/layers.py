"""The simple parts of a Transformer: Linear, Norm, Embed, Dropout, MLP.

Array names end in their dimensions:
    B batch   T position   S position that is attended to   V vocabulary
    D model width   H heads   K head width   F hidden width of the MLP   M mel band

Modules are Flax Linen. A module holds no parameters: `model.init` returns a tree of them, and
`model.apply` computes with it. In a method marked @nn.compact, and in functions that it calls,
Linear(8)(x) makes a submodule and calls it. Its name is part of the path of its parameters.
Parameters are float32. `dtype` is that of activations and matmuls.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.config import GPTConfig
from gptjax.kernels.choice import norm
from gptjax.kernels.dropout import dropout, layer_streams, n_dropped
from gptjax.kernels.relu import relu
from gptjax.kernels.sums import lookup, spread
from gptjax.quantization.quant_array import is_quantized, parameter

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

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.weights(x.shape[-1])
        # Flattened to two dimensions: with more, the backward pass on a CPU makes another copy.
        y = x.reshape(-1, x.shape[-1]) @ kernel.astype(self.dtype)
        if bias is not None:
            y = y + spread(bias, y)  # y + bias, with a fast gradient of the bias
        return y.reshape(*x.shape[:-1], self.features)

    @nn.compact
    def weights(self, fan_in: int) -> tuple[Any, Array | None]:
        """W (fan in, features) and b (features,) or None, also for kernels that need them."""

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            bound = 0.0 if self.zero_init else fan_in**-0.5
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        kernel = parameter(self, "kernel", uniform, (fan_in, self.features))  # or a quantized array
        bias = self.param("bias", uniform, (self.features,)) if self.bias else None
        return kernel, bias


class Norm(nn.Module):
    """Layer normalization (Ba et al. 2016) or RMS normalization (Zhang & Sennrich 2019).

    (..., D) -> (..., D). Statistics are float32 for every dtype.
    """

    config: GPTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        center = self.config.norm == "layernorm"  # subtract the mean
        has_bias = center and self.config.bias
        scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:]) if has_bias else None
        # (x - mean) / sqrt(variance + 1e-5) * scale + bias; RMSNorm has neither mean nor bias.
        return norm(x, scale_D, bias_D, center, self.dtype)


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
        # A quantized table is never differentiated, so its lookup is fast at any size.
        if self.rows > ONE_HOT_ROWS or is_quantized(self.table_VD):
            return lookup(self.table_VD, ids, self.dtype)
        one_hot = jax.nn.one_hot(ids.reshape(-1), self.rows, dtype=self.dtype)
        # HIGHEST: without it a GPU rounds a float32 table to 10 bits of mantissa.
        y = jnp.dot(one_hot, self.table_VD.astype(self.dtype), precision=lax.Precision.HIGHEST)
        return y.reshape(*ids.shape, self.features)

    def attend(self, x: Array) -> Array:
        """The table as an output head (Press & Wolf 2017): (..., features) -> (..., rows)."""
        y = x.reshape(-1, self.features) @ self.table_VD.astype(self.dtype).T
        return y.reshape(*x.shape[:-1], self.rows)


class Dropout(nn.Module):
    """Zeroes a share `rate` of x, scales the rest to keep the mean (Srivastava et al. 2014).

    x is (B, ...). streams_B2 has two random words for each row, made of the step's key and the
    row's number in the whole batch. So the mask does not depend on the micro-batch size or the
    number of devices. None, as in evaluation: nothing is dropped.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, streams_B2: Array | None) -> Array:
        if streams_B2 is None or not n_dropped(self.rate):
            return x
        streams_B2 = layer_streams(streams_B2, self.path)  # masks differ by place in the model
        return dropout(x, streams_B2, n_dropped(self.rate))


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
                h_BTF = relu(h_BTF)
            case "gelu" | "gelu_tanh":
                h_BTF = jax.nn.gelu(h_BTF, approximate=c.activation == "gelu_tanh")
            case "relu2":
                h_BTF = relu(h_BTF) ** 2
            case "swiglu":
                gate_BTF = Linear(c.hidden_width, c.bias, dtype=self.dtype, name="gate")(x_BTD)
                h_BTF = jax.nn.silu(gate_BTF) * h_BTF
            case _:
                raise ValueError(f"unknown activation {c.activation}")
        return Linear(c.n_embd, c.bias, c.zero_init, self.dtype, name="output")(h_BTF)
