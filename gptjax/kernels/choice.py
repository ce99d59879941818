"""Which kernels a program uses: decided here, when it is traced."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax import Array

from gptjax.kernels import layer_norm
from gptjax.kernels.attention import Kind, choose
from gptjax.kernels.attention_tiles import Tiling
from gptjax.scale import devices


class Choice(NamedTuple):
    """attention None: as `choose` says. norm None: kernels on a GPU, else jnp."""

    attention: Kind | None = None
    norm: bool | None = None
    tiling: Tiling = Tiling()
    interpret: bool = False
    """Interpret the kernels, on any device: for tests."""


_current = Choice()


def current() -> Choice:
    return _current


def set_attention(kind: Kind | None) -> None:
    """Programs traced from now on compute attention in this way. None: automatic."""
    global _current
    _current = _current._replace(attention=kind)


@contextlib.contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Programs traced inside of this context use `choice`."""
    global _current
    before, _current = _current, choice
    try:
        yield
    finally:
        _current = before


def attention_kind(dtype: Any, head_width: int, dropped: int) -> Kind:
    """How attention over whole sequences is computed."""
    if wanted := current().attention:
        return wanted
    return choose(devices.backend(), dtype, head_width, dropped, devices.n_devices())


def norm(x: Array, scale_D: Array, bias_D: Array | None, center: bool, dtype: Any) -> Array:
    """Layer normalization if `center`, else RMS normalization: (..., D) -> (..., D) in `dtype`."""
    use_kernel = current().norm
    if use_kernel is None:
        use_kernel = devices.backend() == "gpu" and devices.n_devices() == 1
    if use_kernel and x.dtype == dtype:
        options = layer_norm.Options(center, interpret=current().interpret)
        return layer_norm.norm(x, scale_D, bias_D, options)
    return layer_norm.plain_norm(x, scale_D, bias_D, center, dtype)
