"""Pictures of attention weights: of each head in a text, over a source, and over a recording."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gptjax.atomic import atomic_file
from gptjax.data import audio
from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.data.tokenizer import SpeechTokenizer
from gptjax.decoding import transcription, word_alignment
from gptjax.decoding.transcription import Transcript
from gptjax.decoding.word_alignment import POSITION_SECONDS
from gptjax.models import SpeechRecognizer


def draw_heads(weights_LHTT: np.ndarray, tokens: Sequence[str], path: Path) -> None:
    """Draws a map of every head, one row of maps per layer.

    weights_LHTT: what `attention_weights.self_attention` returns.
    """
    n_layer, n_head, n_tokens, _ = weights_LHTT.shape
    side = 0.7 + 0.1 * n_tokens
    size = (0.4 + side * n_head, 0.5 + side * n_layer)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(n_layer, n_head, squeeze=False)
    names = [repr(token)[1:-1].replace(" ", "\u2423") for token in tokens]  # shows a space
    font: Any = {"fontsize": 6, "fontfamily": "monospace", "parse_math": False}
    turn = 90 if max(map(len, names)) > 2 else 0
    for (layer, head), axes in np.ndenumerate(grid):
        axes.imshow(weights_LHTT[layer, head], cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(n_tokens), names, rotation=turn, **font)
        axes.set_yticks(range(n_tokens), names, **font)
        axes.tick_params(length=0, pad=1)
        axes.set_title(f"layer {layer}, head {head}", fontsize=8)
        axes.spines[:].set_visible(False)
    figure.supxlabel("attends to", fontsize=8)
    figure.supylabel("position", fontsize=8)
    _save(figure, path)


def draw(
    weights_TS: np.ndarray, source: Sequence[str], target: Sequence[str], title: str, path: Path
) -> None:
    """Draws one map: source tokens from left to right, target tokens from top to bottom."""
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
    transcript: Transcript,
    path: Path,
) -> None:
    """Draws the log-mel spectrogram of a recording and, below it, each token's attention over it.

    A recording longer than a window is drawn up to the end of its first window.
    """
    windows = transcription.windows(samples_N, transcription.longest_window(model.config, tok))
    first, end = windows[0]
    samples_N, start = samples_N[first:end], first / SAMPLE_RATE
    words = [w for w in transcript.words if (w.start + w.end) / 2 < end / SAMPLE_RATE]
    text = transcript.text if len(windows) == 1 else " ".join(word.text for word in words)
    mel_BTM, mask_BT = audio.features([samples_N], model.config)
    n_frames = max(1, min(len(samples_N) // HOP, mel_BTM.shape[1]))
    ids = tok.target.encode(text)[: model.config.block_size - len(tok.start_ids)]
    (weights_HTS,) = word_alignment.token_attention(model, params, tok, mel_BTM, mask_BT, [ids])
    weights_TS = word_alignment.mean_of_alignment_heads(
        weights_HTS[:, : len(ids) + 1, : (n_frames + 1) // 2]
    )

    stop = start + n_frames * HOP / SAMPLE_RATE
    height = 0.3 * len(weights_TS)
    size = (min(1.5 + 1.6 * max(3.0, stop - start), 16), 2.6 + height)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, height])
    mel_MT = mel_BTM[0, :n_frames].T
    top = len(mel_MT)
    extent = (start, stop, 0, top)
    upper.imshow(mel_MT, cmap="magma", aspect="auto", origin="lower", extent=extent)
    upper.set_ylabel("mel band", fontsize=9)
    for word in words:
        upper.axvline(word.start, color="white", linewidth=0.6, alpha=0.7)
        middle = min((word.start + word.end) / 2, stop)
        upper.text(middle, 1.02 * top, word.text, ha="center", parse_math=False, fontsize=9)
    last_position = start + weights_TS.shape[1] * POSITION_SECONDS
    extent = (start, last_position, len(weights_TS) - 0.5, -0.5)
    lower.imshow(weights_TS, cmap="Blues", aspect="auto", vmin=0, extent=extent)
    names = [tok.target.decode([i]) for i in ids] + ["end"]
    lower.set_yticks(range(len(weights_TS)), names[: len(weights_TS)], parse_math=False)
    lower.set_xlabel("seconds; cross-attention of the heads that follow the sound", fontsize=9)
    lower.set_xlim(start, stop)
    for axes in (upper, lower):
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Writes a picture whole or not at all: to another name first."""
    with atomic_file(path) as part:
        figure.savefig(part, format=path.suffix.removeprefix("."))
