"""Recordings to text: cut them into windows, decode each window, merge the transcripts.

A clip longer than the model's window is cut into windows that overlap by a quarter or more. Their
transcripts are merged at the quietest place of each overlap, so that no word is cut in two.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config_encoders import SpeechConfig
from gptjax.data import audio
from gptjax.data.audio import HOP, SAMPLE_RATE, WINDOW
from gptjax.data.tokenizer import ByteTokenizer, CharTokenizer, SpeechTokenizer, WordTokenizer
from gptjax.decoding import word_alignment
from gptjax.decoding.beam_search import beam_search, hypotheses
from gptjax.decoding.word_alignment import Word
from gptjax.models import SpeechRecognizer

# Clips in one batch. A fixed number, because every further shape has to be compiled.
BATCH_SIZE = 32
OVERLAP = 0.25
"""Share of a window that it has in common with the next one. Each of the two may move its edge to
a quiet place within one half of the overlap."""
# A transcript without an end whose tail repeats this often is a loop of the model, not speech.
MIN_REPETITIONS = 4
LONGEST_REPETITION = 30
"""In tokens."""
SILENT = 1e-4
"""Clips with no louder sample (-80 dB) are silent: recordings of speech have louder noise."""
QUIET = 10 ** (-35 / 20)
"""Share of the loudest 20 ms. Quieter ends of a window are pauses, of which MARGIN_SECONDS stay:
models that were never trained on long pauses write words for them."""
MARGIN_SECONDS = 0.2
TOKENS_PER_SECOND = {WordTokenizer: 2.0, CharTokenizer: 12.0, ByteTokenizer: 12.0}
"""Of fast speech. It limits the length of a window to what the decoder has room to write."""
SUBWORDS_PER_SECOND = 4.0


class Transcript(NamedTuple):
    """The text of a clip; `words` is empty where no times were asked for."""

    text: str
    words: tuple[Word, ...]
    seconds: float
    looped: bool
    """The model repeated itself without end, and the repetitions were cut off."""


class WindowTranscript(NamedTuple):
    """The text of samples first ... end - 1 of a clip; times of words count from `first`."""

    first: int
    end: int
    text: str
    words: tuple[Word, ...]
    looped: bool


def transcribe(
    model: SpeechRecognizer,
    params: Any,
    tok: SpeechTokenizer,
    clips: Sequence[np.ndarray],
    beam_size: int = 1,
    length_penalty: float = 1.0,
    times: bool = True,
) -> list[Transcript]:
    """The transcript of each clip (N,), samples at 16 kHz.

    Silent clips, and clips shorter than one 25 ms frame, have an empty text.
    """
    longest = longest_window(model.config, tok)
    windows_of_clip = [windows(samples_N, longest) for samples_N in clips]
    audible = [
        (i, first, end)
        for i, several in enumerate(windows_of_clip)
        for first, end in several
        if end - first >= WINDOW and np.abs(clips[i][first:end]).max() > SILENT
    ]
    # Merging several windows needs the times of words.
    batch_times = times or any(len(several) > 1 for several in windows_of_clip)
    order = sorted(range(len(audible)), key=lambda j: audible[j][2] - audible[j][1])
    batch_size = min(BATCH_SIZE, 1 << max(0, len(audible) - 1).bit_length())
    decoded: dict[int, WindowTranscript] = {}
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        batch = [audible[j] for j in part + part[-1:] * (batch_size - len(part))]
        rows = [clips[i][first:end] for i, first, end in batch]
        made = _transcribe_batch(model, params, tok, rows, beam_size, length_penalty, batch_times)
        for j, (_, first, end), result in zip(part, batch, made, strict=False):
            decoded[j] = WindowTranscript(first, end, *result)
    parts: list[list[WindowTranscript]] = [[] for _ in clips]
    for j, (i, _, _) in enumerate(audible):
        parts[i].append(decoded[j])
    return [_merge(samples_N, part, times) for samples_N, part in zip(clips, parts, strict=True)]


def longest_window(model: SpeechConfig, tok: SpeechTokenizer) -> int:
    """Samples of a window: at most what the encoder takes and the decoder has room to write.

    A model has learned texts of up to block_size tokens and leaves words out of longer ones.
    """
    room = model.block_size - len(tok.start_ids)
    seconds = room / TOKENS_PER_SECOND.get(type(tok.target), SUBWORDS_PER_SECOND)
    return min(audio.longest_clip(model), int(seconds * SAMPLE_RATE))


def windows(samples_N: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """(first, end) of each window of a clip, in samples; one window if the clip fits.

    Pauses at the ends of the clip are left out. Neighbours share OVERLAP or more. Every window
    starts and ends at a quiet place, between words.
    """
    first, end = trim_pauses(samples_N, 0, len(samples_N))
    if end - first <= longest:
        return [(first, end)]
    shared = int(longest * OVERLAP)
    n_windows = -(-(end - first - shared) // (longest - shared))
    found = []
    for start in np.linspace(first, end - longest, n_windows).astype(int).tolist():
        stop = start + longest
        start = first if start == first else quietest_place(samples_N, start, start + shared // 2)
        stop = end if stop == end else quietest_place(samples_N, stop - shared // 2, stop)
        found.append(trim_pauses(samples_N, start, stop))
    return found


def trim_pauses(samples_N: np.ndarray, first: int, end: int) -> tuple[int, int]:
    """(first, end) without the long pauses at both ends."""
    n, margin = SAMPLE_RATE // 50, int(MARGIN_SECONDS * SAMPLE_RATE)
    if end - first < n:
        return first, end
    frames = samples_N[first : end - (end - first) % n].reshape(-1, n)
    loudness = np.sqrt(np.mean(frames.astype(np.float64) ** 2, axis=1))
    loud = first + n * np.flatnonzero(loudness >= QUIET * loudness.max())
    return max(first, int(loud[0]) - margin), min(end, int(loud[-1]) + n + margin)


def quietest_place(samples_N: np.ndarray, first: int, end: int) -> int:
    """The middle of the quietest 100 ms between two samples."""
    n = min(SAMPLE_RATE // 10, end - first)
    power = np.cumsum(np.concatenate([[0], samples_N[first:end].astype(np.float64) ** 2]))
    return first + int((power[n:] - power[:-n]).argmin()) + n // 2


def _merge(samples_N: np.ndarray, parts: list[WindowTranscript], times: bool) -> Transcript:
    """One transcript: each window keeps its words up to the quietest place of the overlap."""
    seconds = len(samples_N) / SAMPLE_RATE
    looped = any(part.looped for part in parts)
    if len(parts) == 1 and not times:
        return Transcript(parts[0].text, (), seconds, looped)
    kept: list[Word] = []
    earliest = last_end = 0.0
    for n, part in enumerate(parts):
        latest = part.end / SAMPLE_RATE
        overlaps = n + 1 < len(parts) and parts[n + 1].first < part.end
        if overlaps:
            latest = quietest_place(samples_N, parts[n + 1].first, part.end) / SAMPLE_RATE
        offset = part.first / SAMPLE_RATE
        for text, start, end in part.words:
            start, end = start + offset, end + offset
            if kept and text == kept[-1].text and start < last_end:
                continue  # both windows have this word
            middle = (start + end) / 2
            # The last position of a window may reach past its end.
            if earliest <= middle and (middle < latest or not overlaps):
                kept.append(Word(text, max(start, earliest), min(end, latest)))
                last_end = end
        earliest = latest
    text = parts[0].text if len(parts) == 1 else " ".join(word.text for word in kept)
    return Transcript(text, tuple(kept) if times else (), seconds, looped)


def _transcribe_batch(
    model: SpeechRecognizer,
    params: Any,
    tok: SpeechTokenizer,
    clips: Sequence[np.ndarray],
    beam_size: int,
    length_penalty: float,
    times: bool,
) -> list[tuple[str, tuple[Word, ...], bool]]:
    """(text, words, looped) of each clip; all of them fit the window."""
    mel_BTM, mask_BT = audio.features(clips, model.config)
    start_P = jnp.array(tok.start_ids, jnp.int32)
    beams = jax.device_get(
        beam_search(model, params, mel_BTM, mask_BT, tok.end, beam_size, length_penalty, start_P)
    )
    n_most = model.config.block_size - len(tok.start_ids) + 1
    best, looped = [], []
    for b in range(len(clips)):
        ids = hypotheses(tok, beams, b)[0].ids
        has_no_end = len(ids) == n_most
        best.append(cut_repetitions(ids) if has_no_end else ids)
        looped.append(has_no_end and len(best[b]) < n_most)
    weights_BHTS = None
    if times:
        weights_BHTS = word_alignment.token_attention(model, params, tok, mel_BTM, mask_BT, best)
    made = []
    for b, ids in enumerate(best):
        words: tuple[Word, ...] = ()
        if weights_BHTS is not None and len(ids):
            n_source = (min(len(clips[b]) // HOP, mel_BTM.shape[1]) + 1) // 2
            weights_HTS = weights_BHTS[b][:, : len(ids) + 1, : max(1, n_source)]
            weights_TS = word_alignment.mean_of_alignment_heads(weights_HTS)
            words = tuple(word_alignment.word_times(tok, ids, weights_TS))
        made.append((tok.target.decode(ids).strip(), words, looped[b]))
    return made


def cut_repetitions(ids: np.ndarray) -> np.ndarray:
    """The ids, with a tail that repeats MIN_REPETITIONS times or more cut to one repetition."""
    for n in range(1, LONGEST_REPETITION + 1):
        if len(ids) < MIN_REPETITIONS * n:
            break
        n_repeats = 1
        while (n_repeats + 1) * n <= len(ids) and np.array_equal(
            ids[len(ids) - (n_repeats + 1) * n : len(ids) - n_repeats * n], ids[-n:]
        ):
            n_repeats += 1
        if n_repeats >= MIN_REPETITIONS:
            return ids[: len(ids) - (n_repeats - 1) * n]
    return ids
