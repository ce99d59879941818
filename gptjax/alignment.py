"""What cross-attention looks at: the map from the tokens of a target to those of its source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from gptjax.models import EncoderDecoder


def cross_attention(
    model: EncoderDecoder, params: Any, source_S: np.ndarray, tokens_T: np.ndarray
) -> np.ndarray:
    """Weights (layer, H, T, S) of a target's tokens, the first of which is the boundary.

    Row t is where the decoder looks for the token that follows token t.
    """
    source_1S = jnp.asarray(source_S)[None]
    _, sown = model.apply(
        {"params": params},
        jnp.asarray(tokens_T)[None],
        source=source_1S,
        source_mask=jnp.ones_like(source_1S, bool),
        mutable="intermediates",
    )
    decoder = sown["intermediates"]["decoder"]
    layers = [decoder[f"block_{i}"]["cross_attention"] for i in range(model.config.n_layer)]
    return np.stack([np.asarray(layer["weights"][0][0], np.float32) for layer in layers])


def draw(
    weights_TS: np.ndarray, source: Sequence[str], target: Sequence[str], title: str, path: Path
) -> None:
    """Draws a map, source tokens from left to right, target tokens from top to bottom."""
    n_target, n_source = weights_TS.shape
    size = (1.6 + 0.36 * n_source, 1.3 + 0.3 * n_target)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(weights_TS, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(n_source), source, parse_math=False)
    axes.set_yticks(range(n_target), target, parse_math=False)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.set_xlabel(title, fontsize=9)
    axes.spines[:].set_visible(False)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format=path.suffix.removeprefix("."))
    part.replace(path)
