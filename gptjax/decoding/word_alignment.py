"""When each word of a transcript is spoken, from the decoder's cross-attention.

The method is that of Whisper's word timestamps (openai/whisper, timing.py): dynamic time warping
over the attention weights of the heads that follow the sound.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.data.tokenizer import SpeechTokenizer
from gptjax.decoding import attention_weights
from gptjax.models import SpeechRecognizer

# One position of the encoder covers two frames.
POSITION_SECONDS = 2 * HOP / SAMPLE_RATE
N_ALIGNMENT_HEADS = 2
# A word spans the positions with at least this share of its largest weight.
MIN_WEIGHT = 0.1


class Word(NamedTuple):
    """A word with its start and end, in seconds from the start of the clip."""

    text: str
    start: float
    end: float


def token_attention(
    model: SpeechRecognizer,
    params: Any,
    tok: SpeechTokenizer,
    mel_BTM: np.ndarray,
    mask_BT: np.ndarray,
    ids: Sequence[np.ndarray],
) -> np.ndarray:
    """Cross-attention (B, H, T, S) of all heads of all layers.

    Row t of clip b belongs to token ids[b][t]; the row after the last token to the end token.
    """
    n_start, block_size = len(tok.start_ids), model.config.block_size
    tokens_BT = np.full((len(ids), block_size), tok.end, np.int32)
    for row, ids_of_row in zip(tokens_BT, ids, strict=True):
        row[:n_start] = tok.start_ids
        row[n_start : n_start + len(ids_of_row)] = ids_of_row[: block_size - n_start]
    weights_BLHTS = attention_weights.cross_attention(model, params, tokens_BT, mel_BTM, mask_BT)
    n_batch, n_layer, n_head, *shape_TS = weights_BLHTS.shape
    weights_BHTS = np.asarray(weights_BLHTS).reshape(n_batch, n_layer * n_head, *shape_TS)
    return weights_BHTS[:, :, n_start - 1 :]


def mean_of_alignment_heads(weights_HTS: np.ndarray) -> np.ndarray:
    """The mean (T, S) of the heads that follow the sound from left to right best.

    Most heads attend to the whole clip or to its edges. Whisper has a list of the useful heads of
    each model. Here heads are ranked by the share of their weight on the best monotonic path.
    """

    def share_on_path(weights_TS: np.ndarray) -> float:
        path_S = monotonic_path(weights_TS)
        return float(weights_TS[path_S, np.arange(len(path_S))].sum() / weights_TS.sum())

    order = np.argsort([-share_on_path(weights_TS) for weights_TS in weights_HTS], kind="stable")
    return weights_HTS[order[:N_ALIGNMENT_HEADS]].mean(0)


def word_times(tok: SpeechTokenizer, ids: np.ndarray, weights_TS: np.ndarray) -> list[Word]:
    """The words of a text with their times, from the attention of its tokens and its end token.

    A monotonic path assigns every position to a token. Of the positions of its tokens, a word
    keeps the range in which its weight is at least MIN_WEIGHT of its largest.
    """
    token_S = monotonic_path(weights_TS)
    words: list[Word] = []
    shown, begin = "", 0
    texts = [tok.target.decode(ids[: i + 1]) for i in range(len(ids))]
    for i, text in enumerate(texts):
        # A word ends before a token that starts with a space.
        if i + 1 < len(texts) and not texts[i + 1][len(text) :][:1].isspace():
            continue
        if word := text[len(shown) :].strip():
            positions = np.flatnonzero((token_S >= begin) & (token_S <= i))
            if len(positions):
                weights = weights_TS[begin : i + 1, positions].max(0)
                strong = positions[weights >= MIN_WEIGHT * weights.max()]
                first, end = strong[0], strong[-1] + 1
            else:  # more tokens than positions
                first = end = int(np.searchsorted(token_S, begin))
            words.append(Word(word, first * POSITION_SECONDS, end * POSITION_SECONDS))
        shown, begin = text, i + 1
    return words


def monotonic_path(weights_TS: np.ndarray) -> np.ndarray:
    """The token (S,) of every position, with the largest sum of weights.

    The path starts at token 0 and moves on by 0 or 1 tokens per position (dynamic time warping).
    It ends at the last token, or at token S - 1 if there are fewer positions than tokens.
    """
    n_target, n_source = weights_TS.shape
    score_T = np.full(n_target, -np.inf)
    score_T[0] = 0.0
    moved_ST = np.zeros((n_source, n_target), bool)
    for s in range(n_source):
        previous_T = np.concatenate([[-np.inf], score_T[:-1]])
        moved_ST[s] = previous_T > score_T
        score_T = np.maximum(score_T, previous_T) if s else score_T
        score_T = score_T + weights_TS[:, s]
    t = int(np.flatnonzero(np.isfinite(score_T))[-1])
    path_S = np.zeros(n_source, int)
    for s in range(n_source - 1, -1, -1):
        path_S[s] = t
        if s and moved_ST[s, t]:
            t -= 1
    return path_S
