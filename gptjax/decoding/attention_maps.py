"""Pictures of attention weights: of each head in a text, over a source, and over a recording."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from gptjax.data import audio
from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.data.tokenizer import SpeechTokenizer
from gptjax.decoding import transcription, word_alignment
from gptjax.decoding.transcription import Transcript
from gptjax.decoding.word_alignment import POSITION_SECONDS
from gptjax.drawing import lettering, save
from gptjax.models import SpeechRecognizer

# On a scale of square roots, small weights are visible too. What is hidden is grey.
_COLORS: Any = {"cmap": colormaps["Blues"].with_extremes(bad="0.92")}
_COLORS["norm"] = PowerNorm(0.5, vmin=0, vmax=1)


def draw_heads(weights_LHTT: np.ndarray, tokens: Sequence[str], path: Path) -> None:
    """Draws a map of every head, one row of maps per layer.

    weights_LHTT: what `attention_weights.self_attention` returns.
    """
    n_layer, n_head, n_tokens, _ = weights_LHTT.shape
    side = max(1.2, 0.115 * n_tokens)
    size = (1.6 + (0.1 + side) * n_head, 0.7 + (0.25 + side) * n_layer)
    figure = Figure(figsize=size, dpi=120, layout="compressed")
    grid = figure.subplots(n_layer, n_head, squeeze=False, sharex=True, sharey=True)
    names = [repr(token)[1:-1].replace(" ", "\u2423") for token in tokens]  # shows a space
    names, fonts = lettering(names, "DejaVu Sans Mono")
    fonts |= {"fontsize": 7, "parse_math": False}
    turn = 90 if max(map(len, names)) > 2 else 0
    past_TT = np.tri(n_tokens, dtype=bool)
    image: Any = None
    for (layer, head), axes in np.ndenumerate(grid):
        image = axes.imshow(np.where(past_TT, weights_LHTT[layer, head], np.nan), **_COLORS)
        axes.set_xticks(range(n_tokens), names, rotation=turn, **fonts)
        axes.set_yticks(range(n_tokens), names, **fonts)
        axes.tick_params(length=0, pad=2)
        axes.set_title(f"layer {layer}, head {head}", fontsize=8)
        axes.spines[:].set_visible(False)
    figure.supxlabel("... attends to these tokens (grey: later ones, which are hidden)", fontsize=9)
    figure.supylabel("the model at this token ...", fontsize=9)
    _add_scale(figure, image, grid.ravel().tolist())
    save(figure, path)


def draw(
    weights_TS: np.ndarray, source: Sequence[str], target: Sequence[str], title: str, path: Path
) -> None:
    """Draws one map: source tokens from left to right, target tokens from top to bottom."""
    n_target, n_source = weights_TS.shape
    size = (2.7 + 0.36 * max(n_source, 6), 1.5 + 0.3 * max(n_target, 6))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(weights_TS, aspect="auto", **_COLORS)
    names, fonts = lettering([*source, *target])
    axes.set_xticks(range(n_source), names[:n_source], parse_math=False, **fonts)
    axes.set_yticks(range(n_target), names[n_source:], parse_math=False, **fonts)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_xlabel(f"... the model attends to these tokens of the source\n({title})", fontsize=9)
    axes.set_ylabel("to write this token ...", fontsize=9)
    axes.spines[:].set_visible(False)
    _add_scale(figure, image, [axes])
    save(figure, path)


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
    height = max(1.0, 0.3 * len(weights_TS))
    size = (min(1.5 + 1.6 * max(3.0, stop - start), 16), 2.6 + height)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, height])
    mel_MT = mel_BTM[0, :n_frames].T
    top = len(mel_MT)
    extent = (start, stop, 0, top)
    image = upper.imshow(mel_MT, cmap="magma", aspect="auto", origin="lower", extent=extent)
    upper.set_ylabel("pitch (mel band)", fontsize=9)
    bar = figure.colorbar(image, ax=upper, ticks=[mel_MT.min(), mel_MT.max()], aspect=15)
    bar.ax.set_yticklabels(["quiet", "loud"], fontsize=8)
    bar.outline.set_visible(False)
    names = [tok.target.decode([i]) for i in ids] + ["end"]
    names, fonts = lettering([*names[: len(weights_TS)], *(word.text for word in words)])
    for word, name in zip(words, names[len(weights_TS) :], strict=True):
        upper.axvline(word.start, color="white", linewidth=0.6, alpha=0.7)
        middle = min((word.start + word.end) / 2, stop)
        look: Any = {"ha": "center", "parse_math": False, "fontsize": 9, **fonts}
        upper.text(middle, 1.02 * top, name, **look)
    last_position = start + weights_TS.shape[1] * POSITION_SECONDS
    extent = (start, last_position, len(weights_TS) - 0.5, -0.5)
    # A weight is a share of hundreds of positions, so the scale ends at the largest one.
    look = {**_COLORS, "norm": PowerNorm(0.5, vmin=0, vmax=weights_TS.max())}
    image = lower.imshow(weights_TS, aspect="auto", extent=extent, **look)
    names = names[: len(weights_TS)]
    lower.set_yticks(range(len(weights_TS)), names, parse_math=False, **fonts)
    lower.set_ylabel("to write ...", fontsize=9)
    lower.set_xlabel(
        "... the model attends to the sound at these seconds\n"
        "(cross-attention, mean of the heads that follow the sound)",
        fontsize=9,
    )
    ticks = (0, weights_TS.max() / 4, weights_TS.max())
    _add_scale(figure, image, [lower], ticks, "share of the\nattention")
    lower.set_xlim(start, stop)
    for axes in (upper, lower):
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    save(figure, path)


def _add_scale(
    figure: Figure,
    image: Any,
    axes: list[Axes],
    ticks: Sequence[float] = (0, 0.05, 0.2, 0.5, 1),
    label: str = "share of the attention\n(a row adds up to 1)",
) -> None:
    """The colour scale of maps, on their right."""
    bar = figure.colorbar(image, ax=axes, ticks=ticks, format="{x:.2g}", shrink=0.9, aspect=25)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
