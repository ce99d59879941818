"""From sound to text, and when each word is said.

A clip longer than the model's window is cut in windows that overlap by a quarter; they are joined
where the overlap is quietest, so that no word is cut there.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config_encoders import SpeechConfig
from gptjax.data import audio
from gptjax.data.audio import HOP, SAMPLE_RATE, WINDOW
from gptjax.data.tokenizer import ByteTokenizer, CharTokenizer, SpeechTokenizer, WordTokenizer
from gptjax.decoding import search
from gptjax.models import SpeechRecognizer

# Clips decoded in one batch. A fixed number, because every batch shape compiles anew.
BATCH_SIZE = 32
POSITION_SECONDS = 2 * HOP / SAMPLE_RATE
OVERLAP = 0.25
"""Of two windows, as a share of one: they may look for a quiet place to end in half of it."""
# A text that never ends and repeats its tail this often is a loop, not speech.
LOOPS = 4
LONGEST_LOOP = 30
ALIGNED_HEADS = 2
"""Heads of cross-attention that word times are read from: those that follow the sound best."""
SILENT = 1e-4
"""No sample is louder: -80 dB, where a recording has its own noise."""
QUIET = 10 ** (-35 / 20)
"""Quieter than this share of the loudest 20 ms, a beginning or an end is a pause, of which
MARGIN_SECONDS stay: models make words of longer ones if they never heard any."""
MARGIN_SECONDS = 0.2
TOKENS_PER_SECOND = {WordTokenizer: 2.0, CharTokenizer: 12.0, ByteTokenizer: 12.0}
OF_SUBWORDS = 4.0
"""Of brisk speech: a window is no longer than the decoder has room for that many."""


class Word(NamedTuple):
    """A word and when it is said, in seconds from the start of the clip."""

    text: str
    start: float
    end: float


class Transcript(NamedTuple):
    """What is said in a clip; words are empty if nobody asked for times."""

    text: str
    words: tuple[Word, ...]
    seconds: float
    looped: bool
    """The model repeated itself without end; the repetitions were cut off."""


class Heard(NamedTuple):
    """What is said in the samples first ... end - 1 of a clip; times count from `first`."""

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
    """What is said in each clip of samples at 16 kHz (N,); silence says nothing, nor do 25 ms."""
    longest = longest_window(model.config, tok)
    pieces = [windows(samples_N, longest) for samples_N in clips]
    flat = [
        (i, first, end)
        for i, several in enumerate(pieces)
        for first, end in several
        if end - first >= WINDOW and np.abs(clips[i][first:end]).max() > SILENT
    ]
    order = sorted(range(len(flat)), key=lambda j: flat[j][2] - flat[j][1])
    batch_size = min(BATCH_SIZE, 1 << max(0, len(flat) - 1).bit_length())
    many = any(len(several) > 1 for several in pieces)
    heard: dict[int, tuple[str, tuple[Word, ...], bool]] = {}
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        padded = part + part[-1:] * (batch_size - len(part))
        rows = [clips[i][first:end] for i, first, end in (flat[j] for j in padded)]
        made = _transcribe_batch(model, params, tok, rows, beam_size, length_penalty, times or many)
        heard |= dict(zip(part, made, strict=False))
    of_clip: list[list[Heard]] = [[] for _ in clips]
    for j, (i, first, end) in enumerate(flat):
        of_clip[i].append(Heard(first, end, *heard[j]))
    return [_join(samples_N, parts, times) for samples_N, parts in zip(clips, of_clip, strict=True)]


def longest_window(model: SpeechConfig, tok: SpeechTokenizer) -> int:
    """Samples of a window: what the encoder takes, and no more speech than the decoder can write.

    A model knows texts of up to block_size tokens. Of a sound that says more it leaves out some.
    """
    room = model.block_size - len(tok.start_ids)
    seconds = room / TOKENS_PER_SECOND.get(type(tok.target), OF_SUBWORDS)
    return min(model.source_block_size * 2 * HOP, int(seconds * SAMPLE_RATE))


def windows(samples_N: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """(first, end) of the windows of a clip, without the pauses at its ends; one if it fits.

    Neighbours share OVERLAP or more. Each begins and ends at a quiet place, between words.
    """
    first, end = audible(samples_N, 0, len(samples_N))
    if end - first <= longest:
        return [(first, end)]
    shared = int(longest * OVERLAP)
    n_windows = -(-(end - first - shared) // (longest - shared))
    found = []
    for start in np.linspace(first, end - longest, n_windows).astype(int).tolist():
        stop = start + longest
        start = first if start == first else quietest(samples_N, start, start + shared // 2)
        stop = end if stop == end else quietest(samples_N, stop - shared // 2, stop)
        found.append(audible(samples_N, start, stop))
    return found


def audible(samples_N: np.ndarray, first: int, end: int) -> tuple[int, int]:
    """The part of the samples first ... end - 1 without long pauses at its ends."""
    n, margin = SAMPLE_RATE // 50, int(MARGIN_SECONDS * SAMPLE_RATE)
    if end - first < n:
        return first, end
    frames = samples_N[first : end - (end - first) % n].reshape(-1, n)
    loudness = np.sqrt(np.mean(frames.astype(np.float64) ** 2, axis=1))
    loud = first + n * np.flatnonzero(loudness >= QUIET * loudness.max())
    return max(first, int(loud[0]) - margin), min(end, int(loud[-1]) + n + margin)


def _join(samples_N: np.ndarray, parts: list[Heard], times: bool) -> Transcript:
    """One transcript of a clip's windows: each keeps its words up to the quietest place shared."""
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
            latest = quietest(samples_N, parts[n + 1].first, part.end) / SAMPLE_RATE
        offset = part.first / SAMPLE_RATE
        for text, start, end in part.words:
            start, end = start + offset, end + offset
            if kept and text == kept[-1].text and start < last_end:
                continue  # both windows claim a word at the joint
            middle = (start + end) / 2
            # The last position of a window may reach past its end.
            if earliest <= middle and (middle < latest or not overlaps):
                kept.append(Word(text, max(start, earliest), min(end, latest)))
                last_end = end
        earliest = latest
    text = parts[0].text if len(parts) == 1 else " ".join(word.text for word in kept)
    return Transcript(text, tuple(kept) if times else (), seconds, looped)


def quietest(samples_N: np.ndarray, first: int, end: int) -> int:
    """The middle of the quietest 100 ms between two samples."""
    n = min(SAMPLE_RATE // 10, end - first)
    power = np.cumsum(np.concatenate([[0], samples_N[first:end].astype(np.float64) ** 2]))
    return first + int((power[n:] - power[:-n]).argmin()) + n // 2


def _transcribe_batch(
    model: SpeechRecognizer,
    params: Any,
    tok: SpeechTokenizer,
    clips: Sequence[np.ndarray],
    beam_size: int,
    length_penalty: float,
    times: bool,
) -> list[tuple[str, tuple[Word, ...], bool]]:
    """(text, words, whether it looped) of each clip, all of which fit the window."""
    mel_BTM, mask_BT = audio.features(clips, model.config)
    start_P = jnp.array(tok.start_ids, jnp.int32)
    beams = jax.device_get(
        search.beam_search(
            model, params, mel_BTM, mask_BT, tok.end, beam_size, length_penalty, start_P
        )
    )
    best = [search.hypotheses(tok, beams, b)[0].ids for b in range(len(clips))]
    n_most = model.config.block_size - len(tok.start_ids) + 1
    looped = [len(ids) == n_most for ids in best]
    best = [without_loop(ids) if loop else ids for ids, loop in zip(best, looped, strict=True)]
    looped = [loop and len(ids) < n_most for ids, loop in zip(best, looped, strict=True)]
    weights = cross_attention(model, params, tok, mel_BTM, mask_BT, best) if times else None
    made = []
    for b, ids in enumerate(best):
        words: tuple[Word, ...] = ()
        if weights is not None and len(ids):
            n_source = (min(len(clips[b]) // HOP, mel_BTM.shape[1]) + 1) // 2
            weights_TS = aligned(weights[b][:, : len(ids) + 1, : max(1, n_source)])
            words = tuple(word_times(tok, ids, weights_TS))
        made.append((tok.target.decode(ids).strip(), words, looped[b]))
    return made


def without_loop(ids: np.ndarray) -> np.ndarray:
    """The ids with a tail that repeats itself LOOPS times or more cut to one repetition."""
    for n in range(1, LONGEST_LOOP + 1):
        if len(ids) < LOOPS * n:
            break
        n_repeats = 1
        while (n_repeats + 1) * n <= len(ids) and np.array_equal(
            ids[len(ids) - (n_repeats + 1) * n : len(ids) - n_repeats * n], ids[-n:]
        ):
            n_repeats += 1
        if n_repeats >= LOOPS:
            return ids[: len(ids) - (n_repeats - 1) * n]
    return ids


@functools.partial(jax.jit, static_argnums=0)
def _weights(
    model: SpeechRecognizer, params: Any, tokens_BT: Any, mel_BTM: Any, mask_BT: Any
) -> Any:
    _, sown = model.apply(
        {"params": params}, tokens_BT, source=mel_BTM, source_mask=mask_BT, mutable="intermediates"
    )
    decoder = sown["intermediates"]["decoder"]
    layers = [decoder[f"block_{i}"]["cross_attention"] for i in range(model.config.n_layer)]
    stacked = jnp.concatenate([jnp.asarray(layer["weights"][0]) for layer in layers], axis=1)
    return stacked.astype(jnp.float32)


def cross_attention(
    model: SpeechRecognizer,
    params: Any,
    tok: SpeechTokenizer,
    mel_BTM: np.ndarray,
    mask_BT: np.ndarray,
    ids: Sequence[np.ndarray],
) -> np.ndarray:
    """Where all heads looked for each token of each text, and for its end: (B, H, T, S)."""
    n_start, block_size = len(tok.start_ids), model.config.block_size
    tokens_BT = np.full((len(ids), block_size), tok.end, np.int32)
    for row, of in zip(tokens_BT, ids, strict=True):
        row[:n_start] = tok.start_ids
        row[n_start : n_start + len(of)] = of[: block_size - n_start]
    weights_BHTS = _weights(model, params, tokens_BT, mel_BTM, mask_BT)
    return np.asarray(weights_BHTS)[:, :, n_start - 1 :]


def aligned(weights_HTS: np.ndarray) -> np.ndarray:
    """The mean (T, S) of the heads that follow the sound best, from left to right.

    Most heads look at the whole clip or at its edges. Whisper lists for every model those that do
    not; here a head counts by the share of its weight on the best path that never goes back.
    """

    def on_path(weights_TS: np.ndarray) -> float:
        path_S = monotonic_path(weights_TS)
        share = weights_TS[path_S, np.arange(len(path_S))].sum() / weights_TS.sum()
        return float(share)

    order = np.argsort([-on_path(weights_TS) for weights_TS in weights_HTS], kind="stable")
    return weights_HTS[order[:ALIGNED_HEADS]].mean(0)


def word_times(tok: SpeechTokenizer, ids: np.ndarray, weights_TS: np.ndarray) -> list[Word]:
    """The words of a text and when each is said, from the attention of its tokens and its end.

    Every position of the sound belongs to the token of a path that never goes back and gathers
    the most weight (dynamic time warping, as Whisper's word timestamps); of those, a word keeps
    the stretch in which it has any weight to speak of.
    """
    of_token_S = monotonic_path(weights_TS)
    words: list[Word] = []
    shown, begin = "", 0
    # A word ends where the next token starts with a blank, or where each token is a word.
    pieces = [tok.target.decode(ids[: i + 1]) for i in range(len(ids))]
    for i, text in enumerate(pieces):
        is_last = i + 1 == len(pieces)
        grown = "" if is_last else pieces[i + 1][len(text) :]
        if not is_last and not grown[:1].isspace():
            continue
        word = text[len(shown) :].strip()
        if word:
            at = np.flatnonzero((of_token_S >= begin) & (of_token_S <= i))
            mass_S = weights_TS[begin : i + 1].max(0)
            if len(at):
                strong = at[mass_S[at] >= 0.1 * mass_S[at].max()]
                first, last = strong[0], strong[-1] + 1
            else:  # more tokens than positions
                first = last = int(np.searchsorted(of_token_S, begin))
            words.append(Word(word, first * POSITION_SECONDS, last * POSITION_SECONDS))
        shown, begin = text, i + 1
    return words


def monotonic_path(weights_TS: np.ndarray) -> np.ndarray:
    """The token (S,) of every position: from first to last in order, with the most weight."""
    n_target, n_source = weights_TS.shape
    score_T = np.full(n_target, -np.inf)
    score_T[0] = 0.0
    came_ST = np.zeros((n_source, n_target), bool)
    for s in range(n_source):
        before_T = np.concatenate([[-np.inf], score_T[:-1]])
        came_ST[s] = before_T > score_T
        score_T = np.maximum(score_T, before_T) if s else score_T
        score_T = score_T + weights_TS[:, s]
    t = int(np.flatnonzero(np.isfinite(score_T))[-1])
    path_S = np.zeros(n_source, int)
    for s in range(n_source - 1, -1, -1):
        path_S[s] = t
        if s and came_ST[s, t]:
            t -= 1
    return path_S
