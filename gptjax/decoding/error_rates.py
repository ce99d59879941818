"""Error rates of what a model writes: of pairs (words and phonemes) and of speech.

All rates are shares of 1. Edit distances are Levenshtein's, by jiwer. Every function here raises
UserError if jiwer is not installed.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from gptjax.data.pairs import Pairs
from gptjax.data.recordings import Clip, Example
from gptjax.data.tokenizer import TextTokenizer
from gptjax.errors import import_extra

N_CONFUSIONS = 50
N_WORST = 10
N_RESAMPLES = 1000
"""Bootstrap samples for a confidence interval."""
NOTHING = "-"
"""Takes the place of the missing token in an insertion or a deletion."""


def require_jiwer() -> Any:
    """The package jiwer. Raises UserError if it is not installed."""
    return import_extra("jiwer", "error rates need")


def separate_tokens(tok: TextTokenizer, text: str) -> str:
    """The tokens of a text with one space between them: the words that jiwer compares."""

    def name(i: int) -> str:
        token = tok.decode([i]).replace(" ", "␣")
        return token if token and "\ufffd" not in token else f"<{i}>"  # part of a character

    return " ".join(map(name, tok.encode(text)))


def pair_errors(references: Pairs, hypotheses: dict[str, str]) -> dict[str, Any]:
    """Error rates of one hypothesis per source, and the most frequent confusions.

    references: the accepted targets of each source; hypotheses: what the model writes for it. Both
    are tokens with spaces between them.

    `wer`: share of sources whose hypothesis equals none of their targets. `per`: substituted,
    deleted and inserted tokens per token of the nearest target. `wer_single_reference` and
    `per_single_reference` compare with the first target only. `confusions`: the most frequent
    [reference token, hypothesis token, count] against the nearest targets.
    """
    jiwer = require_jiwer()
    texts = list(hypotheses.values())
    first = [references[source][0] for source in hypotheses]

    def nearest(source: str) -> str:
        """The target with the fewest errors, the first of several."""
        targets = references[source]
        if len(targets) == 1:
            return targets[0]
        return min(targets, key=lambda t: _n_errors(jiwer.process_words(t, hypotheses[source])))

    compared = jiwer.process_words([nearest(source) for source in hypotheses], texts)
    confusions: Counter[tuple[str, str]] = Counter()
    for reference, hypothesis, chunks in zip(
        compared.references, compared.hypotheses, compared.alignments, strict=True
    ):
        for chunk in chunks:
            if chunk.type != "equal":
                wanted = reference[chunk.ref_start_idx : chunk.ref_end_idx]
                written = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
                confusions.update(zip_longest(wanted, written, fillvalue=NOTHING))
    n_wrong = sum(text not in references[source] for source, text in hypotheses.items())
    n_wrong_first = sum(a != b for a, b in zip(first, texts, strict=True))
    return {
        "sources": len(texts),
        "wer": n_wrong / len(texts),
        "per": compared.wer,
        "wer_single_reference": n_wrong_first / len(texts),
        "per_single_reference": jiwer.wer(first, texts),
        "confusions": [[*pair, n] for pair, n in confusions.most_common(N_CONFUSIONS)],
    }


def speech_errors(
    references: Sequence[Clip | Example], hypotheses: Sequence[str]
) -> dict[str, Any]:
    """Error rates of transcripts, in order of the references. Case and punctuation do not count.

    `wer` and `cer`: substituted, deleted and inserted words or characters per word or character of
    the reference. `accuracy`: share of clips without an error. `wer_interval`: the 95 % confidence
    interval of `wer`, by the bootstrap over clips. `per_speaker`: these rates and the number of
    clips. `worst`: the clips with the highest WER.
    """
    jiwer = require_jiwer()
    steps = jiwer.ToLowerCase, jiwer.RemovePunctuation, jiwer.RemoveMultipleSpaces, jiwer.Strip
    plain = jiwer.Compose([step() for step in steps])
    plain_texts = [
        (plain(reference.text), plain(hypothesis))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    compared = [jiwer.process_words(*pair) for pair in plain_texts]
    n_errors = np.array([_n_errors(c) for c in compared])
    n_words = np.array([c.hits + c.substitutions + c.deletions for c in compared])

    def rates(clips: np.ndarray) -> dict[str, float]:
        texts = zip(*(plain_texts[i] for i in clips.tolist()), strict=True)
        return {
            # A reference of punctuation only has no words.
            "wer": float(n_errors[clips].sum() / max(1, n_words[clips].sum())),
            "cer": float(jiwer.cer(*map(list, texts))),
            "accuracy": float((n_errors[clips] == 0).mean()),
        }

    n_clips = len(references)
    resampled = np.random.default_rng(0).integers(n_clips, size=(N_RESAMPLES, n_clips))
    resampled_wer = n_errors[resampled].sum(1) / np.maximum(n_words[resampled].sum(1), 1)
    speakers = np.array([reference.speaker for reference in references])
    clips_of = {str(name): np.flatnonzero(speakers == name) for name in np.unique(speakers)}
    wer = n_errors / np.maximum(n_words, 1)
    order = sorted(np.flatnonzero(n_errors).tolist(), key=lambda i: (-wer[i], i))
    worst = [
        {
            "audio": str(getattr(references[i], "path", f"string {i}")),
            "reference": references[i].text,
            "hypothesis": hypotheses[i],
            "errors": int(n_errors[i]),
        }
        for i in order[:N_WORST]
    ]
    return {
        **rates(np.arange(n_clips)),
        "wer_interval": np.quantile(resampled_wer, (0.025, 0.975)).tolist(),
        "per_speaker": {name: {"clips": len(i), **rates(i)} for name, i in clips_of.items()},
        "worst": worst,
    }


def _n_errors(compared: Any) -> int:
    """Substitutions, deletions and insertions of a result of jiwer."""
    return compared.substitutions + compared.deletions + compared.insertions
