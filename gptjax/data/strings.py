"""Strings: several recorded words of one speaker, joined with pauses into one example."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.data import audio
from gptjax.data.audio import SAMPLE_RATE
from gptjax.data.recordings import Clip, Example

PAUSE_SECONDS = (0.05, 0.4)
"""Shortest and longest pause between two words of a string."""

# Words are short, few and used often, so they stay in memory.
read_word = functools.lru_cache(maxsize=4096)(audio.read)


class Plan(NamedTuple):
    """What an example is made of: one clip, or several with pauses (in samples) between them."""

    clips: tuple[Clip, ...]
    pauses: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(clip.text for clip in self.clips)

    @property
    def size(self) -> int:
        """In samples."""
        return sum(len(read_word(clip.path)) for clip in self.clips) + sum(self.pauses)

    def read(self) -> Example:
        """The joined samples. A pause sounds like the quietest part of the word before it."""
        parts = [read_word(self.clips[0].path)]
        for before, clip, pause in zip(self.clips, self.clips[1:], self.pauses, strict=False):
            parts += [room_tone(read_word(before.path), pause), read_word(clip.path)]
        return Example(np.concatenate(parts), self.text, self.clips[0].speaker)


class Strings:
    """Draws random strings of up to n_most of these clips, all of one speaker."""

    def __init__(self, clips: Sequence[Clip], n_most: int):
        self._clips, self._n_most = clips, n_most
        self._by_speaker: dict[str, list[Clip]] = {}
        for clip in clips:
            self._by_speaker.setdefault(clip.speaker, []).append(clip)

    def fill(self, rng: np.random.Generator, longest: int) -> Plan:
        """One clip, and as many more as fit in `longest` samples."""
        return self._join(rng, self._n_most, longest)

    def draw(self, rng: np.random.Generator, n_fewest: int, longest: int) -> Plan:
        """n_fewest to n_most clips; fewer if they do not fit in `longest` samples."""
        return self._join(rng, int(rng.integers(n_fewest, self._n_most + 1)), longest)

    def _join(self, rng: np.random.Generator, n: int, longest: int) -> Plan:
        first = self._clips[int(rng.integers(len(self._clips)))]
        candidates = self._by_speaker[first.speaker]
        more = [candidates[int(i)] for i in rng.integers(len(candidates), size=n - 1)]
        clips = (first, *more)
        pauses = (rng.uniform(*PAUSE_SECONDS, n) * SAMPLE_RATE).astype(int).tolist()
        plan = Plan((first,))
        for i in range(1, n):
            longer = Plan(clips[: i + 1], tuple(pauses[:i]))
            if longer.size > longest:
                break
            plan = longer
        return plan


def fixed_strings(
    clips: Sequence[Clip], n_fewest: int, n_most: int, n_strings: int, longest: int
) -> list[Plan]:
    """n_strings strings for evaluation. They depend on the arguments alone, not on a seed."""
    strings = Strings(clips, n_most)
    rngs = map(np.random.default_rng, range(n_strings))
    return [strings.draw(rng, n_fewest, longest) for rng in rngs]


def room_tone(samples_N: np.ndarray, size: int) -> np.ndarray:
    """`size` samples of the clip's quietest 20 ms, played forwards and backwards in turn."""
    n = min(SAMPLE_RATE // 50, len(samples_N))
    power = np.concatenate([[0], np.cumsum(samples_N.astype(np.float64) ** 2)])
    start = int((power[n:] - power[:-n]).argmin())
    piece = samples_N[start : start + n]
    return np.resize(np.concatenate([piece, piece[::-1]]), size)
