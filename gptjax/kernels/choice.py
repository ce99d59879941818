"""Which kernels a program uses: decided here, when it is traced."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from gptjax.config import GPTConfig, ModelConfig
from gptjax.errors import UserError
from gptjax.kernels import dropout, layer_norm
from gptjax.kernels.attention import MOST_WIDTH, Kind, choose, fits_cudnn
from gptjax.kernels.attention_tiles import Tiling
from gptjax.scale import devices


class Choice(NamedTuple):
    """attention None: as `choose` says. norm None: kernels for 16-bit floats on a GPU, else jnp.

    n_devices: that a program runs on. None: all.
    """

    attention: Kind | None = None
    norm: bool | None = None
    tiling: Tiling = Tiling()
    interpret: bool = False
    """Interpret the kernels, on any device: for tests."""
    n_devices: int | None = None


PLAIN = Choice("plain", norm=False)


_current = Choice()


def current() -> Choice:
    return _current


def set_attention(kind: Kind | None, n_devices: int) -> None:
    """Programs traced from now on compute attention in this way. None: automatic."""
    global _current
    _current = _current._replace(attention=kind, n_devices=n_devices)


def check(kind: Kind | None, model: ModelConfig, dtype: Any, n_devices: int) -> None:
    """Raises UserError if a model cannot be trained with the attention that was asked for."""
    if kind in (None, "plain") or not isinstance(model, GPTConfig):
        return
    asked, auto = f"--train.attention {kind}", "use --train.attention auto"
    width = model.n_embd // model.n_head
    # Other lengths than these, such as those of pairs, are computed in the plain way.
    lengths = model.block_size, getattr(model, "source_block_size", 0)
    if devices.backend() != "gpu":
        raise UserError(f"{asked} needs a GPU, but this is a {devices.backend().upper()}; {auto}")
    if jnp.dtype(dtype).itemsize != 2:
        raise UserError(
            f"{asked} cannot compute in {jnp.dtype(dtype).name}; use --train.dtype bfloat16, or "
            f"{auto}"
        )
    if width > MOST_WIDTH:
        raise UserError(
            f"{asked} takes heads of width {MOST_WIDTH} at most, but n_embd {model.n_embd} / "
            f"n_head {model.n_head} is {width}; raise --model.n-head or {auto}"
        )
    if kind == "kernel" and n_devices > 1:
        raise UserError(
            f"{asked} needs one device, but the mesh has {n_devices}; use --mesh.data 1 or {auto}"
        )
    if kind == "cudnn" and model.attention_dropout > 0:
        raise UserError(
            f"{asked} has no dropout of attention weights, but --model.dropout is "
            f"{model.dropout:g}; use --model.no-drop-attention or {auto}"
        )
    if kind == "cudnn" and not fits_cudnn(width, lengths):
        raise UserError(
            f"{asked} needs a head width that is a multiple of 8 and even block sizes, but they "
            f"are {width} and {' and '.join(str(n) for n in lengths if n)}; {auto}"
        )


@contextlib.contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Programs traced inside of this context use `choice`."""
    global _current
    before, _current = _current, choice
    try:
        yield
    finally:
        _current = before


def attention_kind(
    dtype: Any, head_width: int, dropped: int, lengths: tuple[int, ...] = ()
) -> Kind:
    """How attention over whole sequences is computed. lengths: of targets and sources."""
    if wanted := current().attention:
        return "plain" if wanted == "cudnn" and not fits_cudnn(head_width, lengths) else wanted
    return choose(devices.backend(), dtype, head_width, dropped, _n_devices(), lengths)


def kind_of_model(model: GPTConfig, dtype: Any) -> Kind:
    """How a model computes attention when it is trained."""
    width, dropped = model.n_embd // model.n_head, dropout.n_dropped(model.attention_dropout)
    return attention_kind(dtype, width, dropped, (model.block_size,))


def is_fused(model: ModelConfig, dtype: Any) -> bool:
    """Whether training keeps no attention weights (B, H, T, T), and its logits in `dtype` alone."""
    return isinstance(model, GPTConfig) and kind_of_model(model, dtype) != "plain"


def _n_devices() -> int:
    return current().n_devices or devices.n_devices()


def norm(x: Array, scale_D: Array, bias_D: Array | None, center: bool, dtype: Any) -> Array:
    """Layer normalization if `center`, else RMS normalization: (..., D) -> (..., D) in `dtype`."""
    use_kernel = current().norm
    if use_kernel is None:
        is_short = jnp.dtype(dtype).itemsize == 2
        use_kernel = is_short and devices.backend() == "gpu" and _n_devices() == 1
    if use_kernel and x.dtype == dtype:
        options = layer_norm.Options(center, interpret=current().interpret)
        return layer_norm.norm(x, scale_D, bias_D, options)
    return layer_norm.plain_norm(x, scale_D, bias_D, center, dtype)
