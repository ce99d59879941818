"""What attention looks at: maps from tokens to those before them, or to a source's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from gptjax.data import audio
from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.data.tokenizer import SpeechTokenizer
from gptjax.decoding import transcribe
from gptjax.decoding.transcribe import POSITION_SECONDS, Transcript
from gptjax.models import GPT, EncoderDecoder, SpeechRecognizer


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


def self_attention(model: GPT, params: Any, tokens_T: np.ndarray) -> np.ndarray:
    """Weights (layer, H, T, T) of a text: row t is where position t looks, at itself or before."""
    _, sown = model.apply({"params": params}, jnp.asarray(tokens_T)[None], mutable="intermediates")
    n_target, layers = len(tokens_T), []
    for i in range(model.config.n_layer):
        # Of all queries, or of a part of them after the other.
        chunks: Any = sown["intermediates"][f"block_{i}"]["attention"]["weights"]
        unseen = [((0, 0), (0, 0), (0, n_target - chunk.shape[-1])) for chunk in chunks]
        rows = [np.pad(chunk[0], pad) for chunk, pad in zip(chunks, unseen, strict=True)]
        layers.append(np.concatenate(rows, axis=1))
    return np.stack(layers).astype(np.float32)


def draw_heads(weights_LHTT: np.ndarray, tokens: Sequence[str], path: Path) -> None:
    """Draws a map for every head, layers from top to bottom, as `self_attention` returns them."""
    n_layer, n_head, n_tokens, _ = weights_LHTT.shape
    side = 0.7 + 0.1 * n_tokens
    size = (0.4 + side * n_head, 0.5 + side * n_layer)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(n_layer, n_head, squeeze=False)
    names = [repr(token)[1:-1].replace(" ", "\u2423") for token in tokens]  # an open box
    font: Any = {"fontsize": 6, "fontfamily": "monospace", "parse_math": False}
    turn = 90 if max(map(len, names)) > 2 else 0
    for (layer, head), axes in np.ndenumerate(grid):
        axes.imshow(weights_LHTT[layer, head], cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(n_tokens), names, rotation=turn, **font)
        axes.set_yticks(range(n_tokens), names, **font)
        axes.tick_params(length=0, pad=1)
        axes.set_title(f"layer {layer}, head {head}", fontsize=8)
        axes.spines[:].set_visible(False)
    figure.supxlabel("looks at", fontsize=8)
    figure.supylabel("a position", fontsize=8)
    _save(figure, path)


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
    _save(figure, path)


def draw_speech(
    model: SpeechRecognizer,
    params: Any,
    tok: SpeechTokenizer,
    samples_N: np.ndarray,
    heard: Transcript,
    path: Path,
) -> None:
    """Draws a sound's log-mel spectrogram and, under it, where each token was looked for.

    Of a sound longer than a window, the first window and the words in it.
    """
    pieces = transcribe.windows(samples_N, transcribe.longest_window(model.config, tok))
    start, end = pieces[0]
    samples_N, since = samples_N[start:end], start / SAMPLE_RATE
    words = [word for word in heard.words if (word.start + word.end) / 2 < end / SAMPLE_RATE]
    text = heard.text if len(pieces) == 1 else " ".join(word.text for word in words)
    mel_BTM, mask_BT = audio.features([samples_N], model.config)
    n_frames = max(1, min(len(samples_N) // HOP, mel_BTM.shape[1]))
    seconds = n_frames * HOP / SAMPLE_RATE
    ids = tok.target.encode(text)[: model.config.block_size - len(tok.start_ids)]
    weights_HTS = transcribe.cross_attention(model, params, tok, mel_BTM, mask_BT, [ids])[0]
    weights_TS = transcribe.aligned(weights_HTS[:, : len(ids) + 1, : (n_frames + 1) // 2])

    size = (1.5 + 1.6 * max(3.0, seconds), 2.6 + 0.3 * len(weights_TS))
    figure = Figure(figsize=(min(size[0], 16), size[1]), dpi=120, layout="constrained")
    ratios = [2.0, 0.3 * len(weights_TS)]
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    top = len(mel_BTM[0, 0])
    above.imshow(
        mel_BTM[0, :n_frames].T,
        cmap="magma",
        aspect="auto",
        origin="lower",
        extent=(since, since + seconds, 0, top),
    )
    above.set_ylabel("mel band", fontsize=9)
    for word in words:
        above.axvline(word.start, color="white", linewidth=0.6, alpha=0.7)
        middle = min((word.start + word.end) / 2, since + seconds)
        above.text(middle, 1.02 * top, word.text, ha="center", parse_math=False, fontsize=9)
    until = since + weights_TS.shape[1] * POSITION_SECONDS
    extent = (since, until, len(weights_TS) - 0.5, -0.5)
    below.imshow(weights_TS, cmap="Blues", aspect="auto", vmin=0, extent=extent)
    names = [tok.target.decode([i]) for i in ids] + ["end"]
    below.set_yticks(range(len(weights_TS)), names[: len(weights_TS)], parse_math=False)
    below.set_xlabel("seconds; cross-attention, the heads that follow the sound best", fontsize=9)
    below.set_xlim(since, since + seconds)
    for axes in (above, below):
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Writes a picture whole or not at all."""
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format=path.suffix.removeprefix("."))
    part.replace(path)
