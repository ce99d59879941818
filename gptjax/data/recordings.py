"""Recordings and their transcripts: found, split, read, and joined into strings of words.

Recordings come from a folder laid out like LibriSpeech or the Free Spoken Digit Dataset, or from a
manifest: a .jsonl file of objects with `audio`, `text`, and optionally `speaker` and `split`. A
string is several recorded words of one speaker, joined with pauses into one example.
"""

import functools
import hashlib
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict, TypeVar

import numpy as np

from gptjax import json_files
from gptjax.data import audio
from gptjax.data.audio import SAMPLE_RATE
from gptjax.errors import UserError
from gptjax.reading import read_bytes

SPLITS = ("train", "val", "test")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FSDD_NAME = re.compile(r"(\d)_(.+)_(\d+)\.wav")
# The official test split of FSDD is takes 0 to 4. The validation split is our choice.
FSDD_TEST, FSDD_VAL = range(5), range(5, 8)
MOST_BYTES = 1 << 30
"""The largest list of transcripts."""
N_READERS = 4
"""Threads that read sound files."""
PAUSE_SECONDS = (0.05, 0.4)
"""Shortest and longest pause between two words of a string."""
LAYOUTS = (
    "name a manifest .jsonl of audio and text, a folder with LibriSpeech's *.trans.txt, or one "
    "with files such as 7_jackson_3.wav"
)
MANIFEST_LINE = 'a line is {"audio": "FILE", "text": "WORDS", "speaker": "NAME"}'
T = TypeVar("T")
V = TypeVar("V")


class Clip(NamedTuple):
    """A sound file, its transcript and its speaker; split is train, val, test or "" (undecided)."""

    path: Path
    text: str
    speaker: str = ""
    split: str = ""
    seconds: float = 0.0
    """Its length by the header. recording_checks.measure finds it, and the next one."""
    n_samples: int = 0
    """Its length at 16 kHz. Lengths of batches are planned by it, so it stays what it was when
    the run started, even if the file changes."""


class FileFacts(TypedDict):
    """What a run remembers of a sound file; bytes is -1 for one that is not there."""

    split: str
    bytes: int


class _Row(TypedDict):
    """A line of a manifest."""

    audio: Path
    text: str
    speaker: NotRequired[str | int | None]
    split: NotRequired[str | None]


class Example(NamedTuple):
    """Samples (N,) at 16 kHz, their transcript and their speaker."""

    samples_N: np.ndarray
    text: str
    speaker: str
    weight: float = 1.0
    """0 for silence in place of a recording that broke after the run had started."""


# Words of strings are short, few and used often, so they stay in memory.
read_word = functools.lru_cache(maxsize=4096)(audio.read)


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(N_READERS)


def map_ahead(function: Callable[[T], V], items: Sequence[T]) -> Iterator[V]:
    """As map. Several threads work a few items ahead of the caller."""
    for first in range(0, len(items), 2 * N_READERS):
        yield from _readers().map(function, items[first : first + 2 * N_READERS])


def read_examples(clips: Sequence[Clip]) -> Iterator[Example]:
    """Each clip as an example. Raises UserError for one that cannot be read."""
    return map_ahead(lambda clip: Example(audio.read(clip.path), clip.text, clip.speaker), clips)


def split(
    clips: Sequence[Clip], fraction: float, hold_out: str, source: str, folder: Path
) -> tuple[tuple[Clip, ...], ...]:
    """Training, validation and test clips. With `hold_out`, that speaker is the test split.

    A clip without a split of its own gets one by the hash of its file name: a share of `fraction`
    for validation and for test. Where several files have one name, the hash is that of the path
    relative to `folder`. Raises UserError if nobody is called `hold_out`.
    """
    if hold_out:
        speakers = sorted({clip.speaker for clip in clips})
        if hold_out not in speakers:
            raise UserError(f"--data.hold-out {hold_out} is no speaker of {source}: {speakers}")
    n_files = Counter(path.name for path in {clip.path for clip in clips})
    parts: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for clip in clips:
        where = clip.split
        if not where:
            is_unique = n_files[clip.path.name] == 1
            name = clip.path.name if is_unique else relative_name(clip.path, folder)
            share = int(hashlib.sha256(os.fsencode(name)).hexdigest()[:8], 16) / 16**8
            where = "test" if share < fraction else "val" if share < 2 * fraction else "train"
        if hold_out and clip.speaker == hold_out:
            where = "test"
        elif hold_out and where == "test":
            continue  # test clips of other speakers are never used
        parts[where].append(clip._replace(split=where))
    return tuple(map(tuple, parts.values()))


def relative_name(path: Path, folder: Path) -> str:
    """The path of a recording inside the data's folder, which may be moved as a whole."""
    return Path(os.path.relpath(path, folder)).as_posix()


def key(clip: Clip, folder: Path) -> str:
    """The name of a clip and, because a line of text may be corrected, a hash of its text."""
    text_hash = hashlib.sha256(clip.text.encode()).hexdigest()[:8]
    return f"{relative_name(clip.path, folder)} {text_hash}"


def find_clips(path: Path, may_be_missing: bool = False) -> list[Clip]:
    """The clips of a manifest in its order, or of a folder in the order of their names.

    may_be_missing: a transcript may name a sound file that is not there. Raises UserError if the
    path does not exist or has none of the known layouts.
    """
    if path.is_file() and path.suffix == ".jsonl":
        clips = _manifest(path, may_be_missing)
    elif (path / "manifest.jsonl").is_file():
        clips = _manifest(path / "manifest.jsonl", may_be_missing)
    elif path.is_dir():
        clips = _librispeech(path, may_be_missing) or _fsdd(path)
        sounds = {p for p in path.rglob("*") if p.suffix.lower() in audio.SUFFIXES}
        if clips:
            unknown = sorted(sounds - {clip.path for clip in clips})
            audio.say_left_out(path, unknown, "sound without a transcript")
    else:
        what = "is no .jsonl" if path.exists() else "does not exist"
        raise UserError(f"--data.path {path} {what}; {LAYOUTS}")
    if not clips:
        raise UserError(f"--data.path {path} has no clips; {LAYOUTS}")
    return clips


def _fsdd(folder: Path) -> list[Clip]:
    clips = []
    for path in sorted(folder.rglob("*.wav")):
        if match := FSDD_NAME.fullmatch(path.name):
            digit, speaker, take = int(match[1]), match[2], int(match[3])
            where = "test" if take in FSDD_TEST else "val" if take in FSDD_VAL else "train"
            clips.append(Clip(path, DIGITS[digit], speaker, where))
    return clips


def _librispeech(folder: Path, may_be_missing: bool) -> list[Clip]:
    clips = []
    for listing in sorted(folder.rglob("*.trans.txt")):
        places = (*listing.relative_to(folder).parts[:-1], folder.name)
        where = next(filter(None, map(_subset, places)), "")
        for number, line in enumerate(read_transcripts(listing).split("\n"), 1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            beside = [listing.parent / f"{name}{suffix}" for suffix in (".flac", ".wav")]
            path = next((p for p in beside if p.is_file()), beside[0] if may_be_missing else None)
            if path is None or not text.strip():
                what = "has no text" if path else f"has no {name}.flac beside it"
                raise UserError(f"{listing}, line {number}: {line[:40]!r} {what}")
            clips.append(Clip(path, text.strip(), name.partition("-")[0], where))
    return clips


def _subset(name: str) -> str:
    """The split of a LibriSpeech folder such as train-clean-100, dev-other or test-clean."""
    kind = {"train": "train", "dev": "val", "test": "test"}
    return kind.get(name.partition("-")[0], "") if "-" in name else ""


def _manifest(path: Path, may_be_missing: bool) -> list[Clip]:
    clips = []
    for number, line in enumerate(read_transcripts(path).split("\n"), 1):
        if not line.strip():
            continue
        row = json_files.parse(line, _Row, f"{path}, line {number}", MANIFEST_LINE)
        sound, text = path.parent / row["audio"], row["text"].strip()
        speaker, part = (str(row.get(name) or "") for name in ("speaker", "split"))
        clip = Clip(sound, text, speaker, part)
        for is_wrong, what in (
            (
                not (may_be_missing or sound.is_file()),
                f"audio {row['audio']} is no file (--data.on-broken skip leaves it out)",
            ),
            (not text, "text is empty"),
            (part not in ("", *SPLITS), f"split {part} is none of {', '.join(SPLITS)}"),
        ):
            if is_wrong:
                raise UserError(f"{path}, line {number}: {what}")
        clips.append(clip)
    return clips


def read_transcripts(path: Path) -> str:
    """The text of a UTF-8 file. Raises UserError if it cannot be read."""
    try:
        return read_bytes(path, MOST_BYTES).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error})") from None


class Plan(NamedTuple):
    """What an example is made of: one clip, or several with pauses (in samples) between them."""

    clips: tuple[Clip, ...]
    pauses: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(clip.text for clip in self.clips)

    @property
    def starts(self) -> list[int]:
        """The first sample of each clip."""
        pairs = zip(self.clips, self.pauses, strict=False)  # the last clip has no pause
        return [0, *itertools.accumulate(clip.n_samples + pause for clip, pause in pairs)]

    @property
    def size(self) -> int:
        """In samples."""
        return sum(clip.n_samples for clip in self.clips) + sum(self.pauses)

    def read(self, read: Callable[[Path], np.ndarray]) -> Example:
        """The joined samples. A pause sounds like the quietest part of the word before it."""
        words = [read(clip.path) for clip in self.clips]
        parts = words[:1]
        for before_N, word_N, pause in zip(words, words[1:], self.pauses, strict=False):
            parts += [room_tone(before_N, pause), word_N]
        return Example(np.concatenate(parts), self.text, self.clips[0].speaker)

    def read_or_silence(self, read: Callable[[Path], np.ndarray]) -> Example:
        """As read. If a file broke since the run started: silence of its length, of weight 0."""
        try:
            return self.read(read)
        except UserError as error:
            if error.args not in _reported:
                _reported.add(error.args)
                print(f"skipped from now on: {error}", file=sys.stderr, flush=True)
            silence_N = np.zeros(self.size, np.float32)
            return Example(silence_N, self.text, self.clips[0].speaker, weight=0.0)


_reported: set[tuple] = set()
"""Errors of files that broke while training, each printed once."""


class Strings:
    """Draws random strings of up to n_most of these clips, all of one speaker."""

    def __init__(self, clips: Sequence[Clip], n_most: int):
        self._clips, self._n_most = clips, n_most
        self._by_speaker: dict[str, list[Clip]] = {}
        for clip in clips:
            self._by_speaker.setdefault(clip.speaker, []).append(clip)

    def draw(self, rng: np.random.Generator, n_fewest: int, longest: int) -> Plan:
        """n_fewest to n_most clips; fewer, but at least one, if `longest` samples hold no more."""
        n = int(rng.integers(n_fewest, self._n_most + 1))
        first = self._clips[int(rng.integers(len(self._clips)))]
        candidates = self._by_speaker[first.speaker]
        clips = (first, *(candidates[i] for i in rng.integers(len(candidates), size=n - 1)))
        pauses = (rng.uniform(*PAUSE_SECONDS, n) * SAMPLE_RATE).astype(int).tolist()
        plan = Plan((first,))
        for i in range(1, n):
            longer = Plan(clips[: i + 1], tuple(pauses[:i]))
            if longer.size > longest:
                break
            plan = longer
        return plan

    def fixed(self, n_fewest: int, n_strings: int, longest: int) -> list[Plan]:
        """n_strings strings for evaluation. They depend on the arguments alone, not on a seed."""
        return [self.draw(np.random.default_rng(i), n_fewest, longest) for i in range(n_strings)]


def room_tone(samples_N: np.ndarray, size: int) -> np.ndarray:
    """`size` samples of the clip's quietest 20 ms, played forwards and backwards in turn."""
    n = min(SAMPLE_RATE // 50, len(samples_N))
    power = np.concatenate([[0], np.cumsum(samples_N.astype(np.float64) ** 2)])
    start = int((power[n:] - power[:-n]).argmin())
    piece = samples_N[start : start + n]
    return np.resize(np.concatenate([piece, piece[::-1]]), size)
