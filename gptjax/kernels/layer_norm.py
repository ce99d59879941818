"""LayerNorm and RMSNorm in one kernel forward and one back.

XLA reads a row once for its mean, again for its variance, and again to normalise it; a kernel
keeps the row in registers. The backward pass computes the statistics again from x, which it has to
read anyway. Gradients of scale and bias are summed over the rows of each program, and over the
programs by XLA.

Array names: N rows, D width, P programs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as triton

EPSILON = 1e-5
PROGRAMS = 512
"""Of the backward pass: about four for each of 132 processors. More would leave more partial sums,
fewer would leave processors without work."""


class Options(NamedTuple):
    """center: subtract the mean (LayerNorm), or not (RMSNorm). rows: of a program at a time."""

    center: bool
    rows: int = 4
    warps: int = 4
    interpret: bool = False


def plain_norm(x: Array, scale_D: Array, bias_D: Array | None, center: bool, dtype: Any) -> Array:
    """The norm of x (..., D) in `dtype`, statistics in float32 (Ba et al. 2016; Zhang & Sennrich
    2019)."""
    x = x.astype(jnp.float32)
    if center:
        x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + EPSILON) * scale_D
    if bias_D is not None:
        x = x + bias_D
    return x.astype(dtype)


# As in attention.py, jax.jit is there so that all layers share what is traced once.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
@functools.partial(jax.jit, static_argnames="options")
def norm(x: Array, scale_D: Array, bias_D: Array | None, options: Options) -> Any:
    """`plain_norm` by kernels, (..., D) -> (..., D) in x's dtype."""
    x_ND = x.reshape(-1, x.shape[-1])
    vectors = (scale_D,) if bias_D is None else (scale_D, bias_D)
    kernel = functools.partial(_forward_kernel, options=options, shape=x_ND.shape)
    grid = -(-x_ND.shape[0] // options.rows)
    y_ND = _call(kernel, grid, jax.ShapeDtypeStruct(x_ND.shape, x.dtype), options, "norm_forward")(
        x_ND, *vectors
    )
    return y_ND.reshape(x.shape)


def _call(kernel: Any, n_programs: int, out_shape: Any, options: Options, name: str) -> Any:
    params = triton.CompilerParams(num_warps=options.warps, num_stages=2)
    return pl.pallas_call(
        kernel,
        grid=(n_programs,),
        out_shape=out_shape,
        compiler_params=params,
        interpret=options.interpret,
        name=name,
    )


def _vector(ref: Any, width: int) -> Array:
    padded = pl.next_power_of_2(width)
    columns = jnp.arange(padded)
    return triton.load(ref.at[pl.ds(0, padded)], mask=columns < width, other=0.0)


def _tile(first: Any, options: Options, shape: tuple[int, ...]) -> tuple[Any, Array]:
    """(index of the tile of rows from `first` on, mask of what exists of it)."""
    n_rows, width = shape
    padded = pl.next_power_of_2(width)
    rows, columns = first + jnp.arange(options.rows), jnp.arange(padded)
    index = (pl.ds(first, options.rows), pl.ds(0, padded))
    return index, (rows < n_rows)[:, None] & (columns < width)[None]


def _normalize(x: Array, exists: Array, width: int, center: bool) -> tuple[Array, Array]:
    """(x normalised, 1 / its deviation as a column), float32; x is zero where it does not exist."""
    if center:
        x = jnp.where(exists, x - x.sum(-1, keepdims=True) / width, 0.0)
    inverse = lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) / width + EPSILON)
    return x * inverse, inverse


def _forward_kernel(*refs: Any, options: Options, shape: tuple[int, ...]) -> None:
    x_ref, scale_ref, *bias_ref, y_ref = refs
    width = shape[1]
    index, exists = _tile(pl.program_id(0) * options.rows, options, shape)
    x = triton.load(x_ref.at[index], mask=exists, other=0.0).astype(jnp.float32)
    y = _normalize(x, exists, width, options.center)[0] * _vector(scale_ref, width)[None]
    if bias_ref:
        y = y + _vector(bias_ref[0], width)[None]
    triton.store(y_ref.at[index], y.astype(y_ref.dtype), mask=exists)


def _backward_kernel(
    *refs: Any, options: Options, shape: tuple[int, ...], n_tiles: int, has_bias: bool
) -> None:
    """One program: n_tiles tiles of rows, one after the other."""
    x_ref, scale_ref, dy_ref, dx_ref, sums_ref = refs
    program, width = pl.program_id(0), shape[1]
    padded = pl.next_power_of_2(width)
    scale = _vector(scale_ref, width)[None]

    def body(i: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        dscale, dbias = sums
        index, exists = _tile((program * n_tiles + i) * options.rows, options, shape)
        x = triton.load(x_ref.at[index], mask=exists, other=0.0).astype(jnp.float32)
        dy = triton.load(dy_ref.at[index], mask=exists, other=0.0).astype(jnp.float32)
        normal, inverse = _normalize(x, exists, width, options.center)
        g = dy * scale
        dx = g - normal * (jnp.sum(g * normal, -1, keepdims=True) / width)
        if options.center:
            dx = dx - jnp.sum(g, -1, keepdims=True) / width
        triton.store(dx_ref.at[index], (dx * inverse).astype(dx_ref.dtype), mask=exists)
        return dscale + jnp.sum(dy * normal, 0), dbias + jnp.sum(dy, 0) if has_bias else dbias

    zeros = jnp.zeros((padded,), jnp.float32)
    dscale, dbias = lax.fori_loop(0, n_tiles, body, (zeros, zeros))
    fits = jnp.arange(padded) < width
    for i, row in enumerate((dscale, dbias)[: 1 + has_bias]):
        index = (program * (1 + has_bias) + i, pl.ds(0, padded))
        triton.store(sums_ref.at[index], row, mask=fits)


def _forward(x: Array, scale_D: Array, bias_D: Array | None, options: Options) -> Any:
    return norm(x, scale_D, bias_D, options), (x, scale_D, bias_D)


@functools.partial(jax.jit, static_argnames="options")
def _backward(options: Options, residuals: Any, dy: Array) -> Any:
    x, scale_D, bias_D = residuals
    has_bias = bias_D is not None
    x_ND = x.reshape(-1, x.shape[-1])
    n_tiles = -(-x_ND.shape[0] // (options.rows * PROGRAMS))
    n_programs = -(-x_ND.shape[0] // (options.rows * n_tiles))
    # Scale and bias in one array, so that one kernel sums what the programs found.
    shape = (n_programs, 1 + has_bias, x_ND.shape[1])
    sums = jax.ShapeDtypeStruct((shape[0] * shape[1], shape[2]), jnp.float32)
    kernel = functools.partial(
        _backward_kernel, options=options, shape=x_ND.shape, n_tiles=n_tiles, has_bias=has_bias
    )
    out = (jax.ShapeDtypeStruct(x_ND.shape, x.dtype), sums)
    dx, sums = _call(kernel, n_programs, out, options, "norm_backward")(
        x_ND, scale_D, dy.reshape(x_ND.shape)
    )
    dscale_D, *dbias_D = sums.reshape(shape).sum(0)
    return dx.reshape(x.shape), dscale_D, dbias_D[0] if has_bias else None


norm.defvjp(_forward, _backward)
