"""Speech and its transcripts as padded batches, each a pure function of (seed, step).

A clip is a sound file, what is said in it, and by whom. Clips come from a folder laid out as
LibriSpeech or as the Free Spoken Digit Dataset, or from a manifest: a .jsonl of objects with
`audio`, `text` and perhaps `speaker` and `split`. Sound is read when a batch needs it, by a pool
of threads and ahead of the step, so that a corpus may be larger than memory.
"""

import functools
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.config import Config
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig
from gptjax.data import audio, datasets, espeak, tokenizer
from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.data.pairs import epoch_batches
from gptjax.data.texts import ALL, TRAINING, Batch
from gptjax.data.tokenizer import SpeechTokenizer, Tokenizer
from gptjax.errors import UserError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FSDD_NAME = re.compile(r"(\d)_(.+)_(\d+)\.wav")
# FSDD's official split is by the number of the take: 0-4 is for test. The next three are our own.
FSDD_TEST, FSDD_VAL = range(5), range(5, 8)

# Strings of words that a validation is made of, and a test; the latter of so many words each.
N_VAL_STRINGS, N_TEST_STRINGS, TEST_STRING_WORDS = 200, 300, (3, 5)
PAUSE_SECONDS = (0.05, 0.4)
"""Shortest and longest silence between two words of a string."""
NOISE_DB = (5.0, 40.0)
"""How much weaker than the speech added noise is."""
# SpecAugment's longest stretches: of time as a share of the longest clip of a batch, of bands.
TIME_SHARE, BAND_SHARE = 0.06, 0.15
N_READERS = 4


class Clip(NamedTuple):
    """A sound file, what is said in it, by whom; split is "train", "val", "test" or undecided."""

    path: Path
    text: str
    speaker: str = ""
    split: str = ""


class Example(NamedTuple):
    """Samples at 16 kHz (N,), what is said, and by whom."""

    samples_N: np.ndarray
    text: str
    speaker: str


@dataclass(frozen=True)
class SpeechData:
    """Clips in three splits, of which an example is one or, strung together, several."""

    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    test: tuple[Clip, ...]
    seconds: np.ndarray
    """Of each training clip, (N,)."""
    val_seconds: np.ndarray
    """Of each validation clip, (N,)."""
    string_clips: int
    tokenizer: SpeechTokenizer
    source: str
    """Where it came from, for people."""
    sha256: str
    """Of the files' names, sizes and texts: a run refuses to continue on other clips."""

    one_shape = False
    """Batches of different lengths cannot share a dispatch."""

    @property
    def sample_flags(self) -> str:
        """What sample.py wants besides the run."""
        return f" --audio {shlex.quote(str(self.val[0].path))}"

    @property
    def sizes(self) -> dict[str, int]:
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {f"{name}_clips": len(clips) for name, clips in splits.items()}

    def tokens_per_sequence(self, config: Config) -> float:
        """Mean number of the encoder's positions and of the decoder's."""
        model = config.model
        assert isinstance(model, SpeechConfig)
        n_clips = (1 + self.string_clips) / 2
        seconds = n_clips * self.seconds.mean() + (n_clips - 1) * np.mean(PAUSE_SECONDS)
        positions = model.source_block_size
        if not model.pad_source:
            positions = min(seconds * SAMPLE_RATE / HOP / 2, positions)
        some = self.train[:: max(1, len(self.train) // 100)]
        lengths = [len(self.tokenizer.target.encode(clip.text)) for clip in some]
        return float(positions + n_clips * np.mean(lengths) + 1)

    def batch(self, config: Config, step: int, rows: slice = ALL) -> Batch:
        """These rows of the training batch of a step: mel spectrograms (B, T, M), masks, texts.

        Clips on their own come in epochs, each an order of its own, those of like length together;
        strings are drawn at random, of one speaker and one number of clips in a batch. What the
        batch is made of is decided for all rows, but only these are read.
        """
        c, model = config.data, config.model
        assert isinstance(model, SpeechConfig)
        assert isinstance(c, SpeechDataConfig)
        rng = np.random.default_rng((config.seed, TRAINING, step))
        longest = model.source_block_size * 2 * HOP
        batch_size = config.train.batch_size
        factors = 1 + rng.uniform(-c.speed_change, c.speed_change, batch_size)
        if self.string_clips > 1:
            strings = Strings(self.train, self.string_clips)
            # Of like length, so that little of a batch is padding.
            width = longest * rng.integers(1, audio.N_WIDTHS + 1) / audio.N_WIDTHS
            fill = width * rng.uniform(0.4, 1, batch_size) * np.minimum(factors, 1)
            plans = [strings.fill(rng, int(size)) for size in fill]
            sizes = np.array([plan.size for plan in plans])
        else:
            clips = self._clips(config, step)
            plans = [Plan((self.train[i],)) for i in clips]
            sizes = np.round(self.seconds[clips] * SAMPLE_RATE)
        # A clip that is slowed down may grow past the model's window by a little.
        n_frames = int(min((sizes / factors).max(), longest)) // HOP
        varied = []
        for row, example in zip(range(batch_size)[rows], self._read(plans[rows]), strict=True):
            samples_N = example.samples_N
            if c.speed_change:
                samples_N = audio.change_speed(samples_N, factors[row])
            rng = np.random.default_rng((config.seed, TRAINING, step, 1 + row))
            if rng.random() < c.noise:
                samples_N = audio.add_noise(samples_N, rng, rng.uniform(*NOISE_DB))
            varied.append(example._replace(samples_N=samples_N))
        like = n_frames, [plan.text for plan in plans]
        batch = make_batch(varied, model, self.tokenizer, like)
        if c.spec_masks:
            n_frames, n_bands = batch["source"].shape[1:]
            most = round(TIME_SHARE * n_frames), round(BAND_SHARE * n_bands)
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            keys_B = jax.random.split(key, batch_size)[rows]
            masks = c.spec_masks, most[0], c.spec_masks, most[1]
            batch["source"] = np.asarray(_spec_augment(batch["source"], keys_B, *masks))
        return batch

    def _clips(self, config: Config, step: int) -> np.ndarray:
        """Which training clips a step's batch takes."""
        model, batch_size = config.model, config.train.batch_size
        assert isinstance(model, SpeechConfig)
        frames = np.minimum(self.seconds * SAMPLE_RATE // HOP, 2 * model.source_block_size)
        width = np.array([audio.padded_frames(int(n), model) for n in frames])
        buckets = [np.flatnonzero(width == w) for w in np.unique(width)]
        sizes = tuple(map(len, buckets))
        epoch, number = divmod(step, sum(-(-size // batch_size) for size in sizes))
        bucket, rows = epoch_batches(sizes, batch_size, config.seed, epoch)[number]
        return buckets[bucket][rows]

    def validation(self, config: Config, batch_size: int, rows: slice = ALL) -> Iterator[Batch]:
        """These rows of the batches of the validation split, leaves (1, B, ...).

        It has the same strings every time, or each clip once.
        """
        model = config.model
        assert isinstance(model, SpeechConfig)
        if self.string_clips > 1:
            plans = _strings(self.val, 1, self.string_clips, N_VAL_STRINGS, model)
            plans.sort(key=lambda plan: plan.size)
            sizes = [plan.size for plan in plans]
        else:
            plans = [Plan((clip,)) for clip in self.val]
            sizes = [round(seconds * SAMPLE_RATE) for seconds in self.val_seconds]
        for first in range(0, len(plans), batch_size):
            part = plans[first : first + batch_size]
            part += part[-1:] * (batch_size - len(part))
            longest = max(sizes[first : first + batch_size])
            like = longest // HOP, [plan.text for plan in part]
            batch = make_batch(list(self._read(part[rows])), model, self.tokenizer, like)
            batch["loss_weights"][first + np.arange(batch_size)[rows] >= len(plans)] = 0
            yield {name: leaf[None] for name, leaf in batch.items()}

    def val_examples(self, n: int, model: SpeechConfig) -> list[Example]:
        """n examples spread over the validation split, the same ones every time."""
        if self.string_clips > 1:
            plans = _strings(self.val, 1, self.string_clips, n, model)
        else:
            plans = [Plan((clip,)) for clip in self.val[:: max(1, len(self.val) // n)]]
        return list(self._read(plans[:n]))

    def _read(self, plans: Sequence["Plan"]) -> Iterator[Example]:
        """Words from memory, where they stay; whole utterances from the disk, a few ahead."""
        if self.string_clips > 1:
            return (plan.read() for plan in plans)
        return read_examples([plan.clips[0] for plan in plans])

    def test_strings(self, model: SpeechConfig) -> list[Example]:
        """300 strings of three to five test clips of one speaker, always the same."""
        plans = _strings(self.test, *TEST_STRING_WORDS, N_TEST_STRINGS, model)
        return [plan.read() for plan in plans]


class Plan(NamedTuple):
    """One clip, or a string of several with pauses (in samples) between them."""

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
        """In a pause sounds the quietest 20 ms of the word before it, back and forth."""
        parts = [read_word(self.clips[0].path)]
        for before, clip, pause in zip(self.clips, self.clips[1:], self.pauses, strict=False):
            parts += [room_tone(read_word(before.path), pause), read_word(clip.path)]
        return Example(np.concatenate(parts), self.text, self.clips[0].speaker)


class Strings:
    """Makes strings of a speaker's clips, as real as recordings of single words allow."""

    def __init__(self, clips: Sequence[Clip], most: int):
        self._clips, self._most = clips, most
        self._of_speaker: dict[str, list[Clip]] = {}
        for clip in clips:
            self._of_speaker.setdefault(clip.speaker, []).append(clip)

    def fill(self, rng: np.random.Generator, size: int) -> Plan:
        """A string of one clip, and as many more as fit `size` samples."""
        return self._join(rng, self._most, size)

    def draw(self, rng: np.random.Generator, fewest: int, longest: int) -> Plan:
        """A string of fewest ... most clips, or of what fits `longest` samples."""
        return self._join(rng, int(rng.integers(fewest, self._most + 1)), longest)

    def _join(self, rng: np.random.Generator, n: int, size: int) -> Plan:
        first = self._clips[int(rng.integers(len(self._clips)))]
        of_speaker = self._of_speaker[first.speaker]
        clips = [first] + [of_speaker[int(i)] for i in rng.integers(len(of_speaker), size=n - 1)]
        pauses = (rng.uniform(*PAUSE_SECONDS, n) * SAMPLE_RATE).astype(int).tolist()
        plan = Plan((first,))
        for i in range(1, n):
            longer = Plan(tuple(clips[: i + 1]), tuple(pauses[:i]))
            if longer.size > size:
                break
            plan = longer
        return plan


def _strings(
    clips: Sequence[Clip], fewest: int, most: int, n_strings: int, model: SpeechConfig
) -> list[Plan]:
    """Strings that depend on the clips alone."""
    strings, longest = Strings(clips, most), model.source_block_size * 2 * HOP
    rngs = map(np.random.default_rng, range(n_strings))
    return [strings.draw(rng, fewest, longest) for rng in rngs]


def room_tone(samples_N: np.ndarray, size: int) -> np.ndarray:
    """`size` samples of the clip's quietest 20 ms, played forwards and backwards in turn."""
    n = min(SAMPLE_RATE // 50, len(samples_N))
    power = np.concatenate([[0], np.cumsum(samples_N.astype(np.float64) ** 2)])
    start = int((power[n:] - power[:-n]).argmin())
    piece = samples_N[start : start + n]
    both_ways = np.concatenate([piece, piece[::-1]])
    return np.resize(both_ways, size)


# Words are short, few, and wanted again and again; whole utterances stay on the disk.
read_word = functools.lru_cache(maxsize=4096)(audio.read)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _spec_augment(mel_BTM: Any, keys_B: Any, *masks: int) -> Any:
    return jax.vmap(lambda mel_TM, key: audio.spec_augment(mel_TM, key, *masks))(mel_BTM, keys_B)


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(N_READERS)


def read(clips: Sequence[Clip]) -> Iterator[np.ndarray]:
    """The samples of clips, read by several threads."""
    return _readers().map(audio.read, [clip.path for clip in clips])


def read_examples(clips: Sequence[Clip]) -> Iterator[Example]:
    """Each clip by itself, read a few ahead of where they are wanted."""
    for first in range(0, len(clips), 2 * N_READERS):
        part = clips[first : first + 2 * N_READERS]
        for clip, samples_N in zip(part, read(part), strict=True):
            yield Example(samples_N, clip.text, clip.speaker)


def make_batch(
    examples: Sequence[Example],
    model: SpeechConfig,
    tok: SpeechTokenizer,
    like: tuple[int, list[str]] | None = None,
) -> dict[str, np.ndarray]:
    """The batch of these examples; texts padded to a multiple of a quarter of block_size.

    like: the frames of the longest clip, and all texts, of the batch that these are some rows of.
    """
    texts = [e.text for e in examples]
    n_frames, all_texts = like or (None, texts)
    width = None if n_frames is None else audio.padded_frames(n_frames, model)
    clips = [e.samples_N[: width and width * HOP] for e in examples]
    mel_BTM, mask_BT = audio.features(clips, model, width)
    start, n_start = list(tok.start_ids), len(tok.start_ids)
    rows = [[*start, *tok.target.encode(text), tok.end] for text in texts]
    longest = n_start + 1 + max(len(tok.target.encode(text)) for text in all_texts)
    quarter = -(-model.block_size // 4)
    width = -(-(longest - 1) // quarter) * quarter
    ids = np.full((len(rows), min(width, model.block_size) + 1), tok.end, np.int32)
    weights = np.zeros((len(rows), ids.shape[1] - 1), np.float32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        weights[i, n_start - 1 : len(row) - 1] = 1
    return {
        "source": mel_BTM,
        "source_mask": mask_BT,
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "loss_weights": weights,
    }


def load(config: Config, tok: Tokenizer | None = None) -> SpeechData:
    """Finds, or fetches, the clips that a configuration names, and splits them.

    Clips that do not say where they belong are split by the hashes of their names, val_fraction
    each for validation and test. The tokenizer is made of their texts unless it is given. Raises
    UserError for a folder without clips, a clip that is broken or longer than the model's window, a
    text that does not fit, an empty split.
    """
    c, model = config.data, config.model
    assert isinstance(model, SpeechConfig)
    assert isinstance(c, SpeechDataConfig)
    clips = find_clips(_folder(c))
    source = str(c.path or c.name)
    listing = [(clip.path.name, clip.path.stat().st_size, clip.text) for clip in clips]
    sha256 = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    train, val, test = split(clips, c.val_fraction, c.hold_out, source)
    for name, part in (("training", train), ("validation", val)):
        if not part:
            raise UserError(f"{source}: {len(clips)} clips leave none for {name}; use more")
    texts = "\n".join(clip.text for clip in (*train, *val))  # those that must be encoded
    if c.tokenizer == "char":
        texts = texts.replace("\n", " ")
    tok = tok or SpeechTokenizer(tokenizer.train(c.tokenizer, texts, c.vocab_size))
    assert isinstance(tok, SpeechTokenizer)
    _check_texts((*train, *val), model, tok, c.string_clips)
    seconds = _durations((*train, *val), model)
    of_train, of_val = seconds[: len(train)], seconds[len(train) :]
    return SpeechData(train, val, test, of_train, of_val, c.string_clips, tok, source, sha256)


def _durations(clips: Sequence[Clip], model: SpeechConfig) -> np.ndarray:
    """Seconds (N,) of every clip, as its header has them."""
    seconds = np.array([audio.duration(clip.path) for clip in clips])
    longest = model.source_block_size * 2 * HOP / SAMPLE_RATE
    if not seconds.all():
        raise UserError(f"{clips[int(seconds.argmin())].path} has no samples; leave it out")
    i = int(seconds.argmax())
    if seconds[i] > longest:
        raise UserError(
            f"{clips[i].path} is {seconds[i]:.1f} s long, more than the {longest:.1f} s of "
            f"--model.source-block-size {model.source_block_size}; raise that, or leave it out"
        )
    return seconds


def _folder(c: SpeechDataConfig) -> Path:
    """Where the clips of a configuration lie; fetched, or spoken, if need be."""
    if c.name == "espeak":
        path = c.path or datasets.fetch("tinyshakespeare")
        lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
        digest = hashlib.sha256(json.dumps([lines, c.synthetic_clips]).encode()).hexdigest()
        folder = datasets.cache() / "espeak" / digest[:16]
        return espeak.make(lines, c.synthetic_clips, 0, folder).parent
    if c.path:
        return c.path
    if c.name == "fsdd":
        return datasets.fetch_fsdd()
    raise UserError(
        "LibriSpeech is too large to fetch unasked; unpack train-clean-100 and dev-clean of "
        "openslr.org/12 in a folder and name that with --data.path"
    )


def _check_texts(
    clips: Sequence[Clip], model: SpeechConfig, tok: SpeechTokenizer, string_clips: int
) -> None:
    room = model.block_size - len(tok.start_ids)
    for clip in clips:
        n_tokens = len(tok.target.encode(" ".join([clip.text] * string_clips)))
        if n_tokens > room:
            raise UserError(
                f"the text of {clip.path} has {n_tokens} tokens"
                + (f" (said {string_clips} times)" if string_clips > 1 else "")
                + f", but --model.block-size {model.block_size} holds {room}; raise that, or leave "
                "the clip out"
            )


def split(
    clips: Sequence[Clip], fraction: float, hold_out: str, source: str
) -> tuple[tuple[Clip, ...], ...]:
    """Training, validation and test clips; all of the speaker held out, and only they, are test."""
    if hold_out:
        speakers = sorted({clip.speaker for clip in clips})
        if hold_out not in speakers:
            raise UserError(f"--data.hold-out {hold_out} is no speaker of {source}: {speakers}")
    parts: dict[str, list[Clip]] = {"train": [], "val": [], "test": []}
    for clip in clips:
        where = clip.split
        if not where:
            share = int(hashlib.sha256(clip.path.name.encode()).hexdigest()[:8], 16) / 16**8
            where = "test" if share < fraction else "val" if share < 2 * fraction else "train"
        if hold_out and clip.speaker == hold_out:
            where = "test"
        elif hold_out and where == "test":
            continue  # what is test anyway stays unseen
        parts[where].append(clip)
    return tuple(tuple(parts[name]) for name in ("train", "val", "test"))


# --- where clips come from


def find_clips(path: Path) -> list[Clip]:
    """The clips of a manifest or a folder, in the order of their names.

    Raises UserError when there is no such path, and when it is laid out in no way that we know.
    """
    if path.is_file() and path.suffix == ".jsonl":
        clips = _manifest(path)
    elif (path / "manifest.jsonl").is_file():
        clips = _manifest(path / "manifest.jsonl")
    elif path.is_dir():
        clips = _librispeech(path) or _fsdd(path)
    else:
        what = "is no .jsonl" if path.exists() else "does not exist"
        raise UserError(f"--data.path {path} {what}; {LAYOUTS}")
    if not clips:
        raise UserError(f"--data.path {path} has no clips; {LAYOUTS}")
    return clips


LAYOUTS = (
    "name a manifest .jsonl of audio and text, a folder with LibriSpeech's *.trans.txt, or one "
    "with files such as 7_jackson_3.wav"
)


def _fsdd(folder: Path) -> list[Clip]:
    clips = []
    for path in sorted(folder.rglob("*.wav")):
        if match := FSDD_NAME.fullmatch(path.name):
            digit, speaker, take = int(match[1]), match[2], int(match[3])
            where = "test" if take in FSDD_TEST else "val" if take in FSDD_VAL else "train"
            clips.append(Clip(path, DIGITS[digit], speaker, where))
    return clips


def _librispeech(folder: Path) -> list[Clip]:
    clips = []
    for listing in sorted(folder.rglob("*.trans.txt")):
        inside = listing.relative_to(folder).parts[:-1]
        where = next((s for part in inside for s in [_subset(part)] if s), _subset(folder.name))
        for number, line in enumerate(_text(listing).splitlines(), 1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            beside = (listing.parent / f"{name}{suffix}" for suffix in (".flac", ".wav"))
            path = next((p for p in beside if p.is_file()), None)
            if path is None or not text.strip():
                what = "has no text" if path else f"has no {name}.flac beside it"
                raise UserError(f"{listing}, line {number}: {line[:40]!r} {what}")
            clips.append(Clip(path, text.strip(), name.partition("-")[0], where))
    return clips


def _subset(name: str) -> str:
    """Of a LibriSpeech folder: train-clean-100, dev-other, test-clean."""
    kind = {"train": "train", "dev": "val", "test": "test"}
    return kind.get(name.partition("-")[0], "") if "-" in name else ""


def _manifest(path: Path) -> list[Clip]:
    clips = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            sound, text = path.parent / row["audio"], row["text"].strip()
            speaker, part = (row.get(name) or "" for name in ("speaker", "split"))
            clip = Clip(sound, text, str(speaker), part)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} is not "
                '{"audio": "FILE", "text": "WORDS", "speaker": "NAME"}'
            ) from None
        wrong = ""
        if not sound.is_file():
            wrong = f"audio {row['audio']} is no file"
        elif not text:
            wrong = "text is empty"
        elif clip.split not in ("", "train", "val", "test"):
            wrong = f"split {clip.split} is none of train, val, test"
        if wrong:
            raise UserError(f"{path}, line {number}: {wrong}")
        clips.append(clip)
    return clips


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error})") from None
