"""Speech and transcripts as padded batches, each a pure function of (seed, step).

Sound files are read when a batch needs them, by several threads, so a corpus may be larger than
memory. All are decoded once before training. A file that breaks later is replaced by silence with
loss weight zero: the batch keeps its shape and its other rows, and no process has to ask another.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptjax.config import Config
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig
from gptjax.data import audio, recording_checks, recordings, speech_sources, tokenizer
from gptjax.data.audio import HOP, SAMPLE_RATE
from gptjax.data.augmentation import change_tempo, vary_samples, vary_spectrograms
from gptjax.data.batches import ALL, TRAINING, Batch, bucket_batch
from gptjax.data.frame_targets import frame_targets
from gptjax.data.recordings import PAUSE_SECONDS, Clip, Example, FileFacts, Plan, Strings
from gptjax.data.tokenizer import SpeechTokenizer, Tokenizer
from gptjax.errors import UserError

# Strings of words in a validation and in a test, and the number of words of the latter.
N_VAL_STRINGS, N_TEST_STRINGS, TEST_STRING_WORDS = 200, 300, (3, 5)


@dataclass(frozen=True)
class SpeechData:
    """Clips in three splits. An example is one clip, or a string of several."""

    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    test: tuple[Clip, ...]
    seconds: np.ndarray
    """Length (N,) of every training clip."""
    val_seconds: np.ndarray
    """Length (N,) of every validation clip."""
    string_clips: int
    tokenizer: SpeechTokenizer
    source: str
    """Where the clips came from, for messages."""
    sha256: str
    """Of the files' names, sizes and texts, broken ones included."""
    files: dict[str, FileFacts]
    """By recordings.key, of every clip found. By this a run that continues tells a file that was
    dropped or mended from other data."""

    one_shape = False
    """Batches have different lengths, so a dispatch takes one step."""

    @property
    def sample_flags(self) -> str:
        """Extra options that `gptjax sample` needs."""
        return f" --audio {shlex.quote(str(self.val[0].path))}"

    @property
    def sizes(self) -> dict[str, int]:
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {f"{name}_clips": len(clips) for name, clips in splits.items()}

    def tokens_per_sequence(self, config: Config) -> float:
        """Mean number of encoder positions plus decoder positions."""
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
        """These rows of a step's training batch: mel spectrograms (B, T, M), masks, texts.

        Single clips come in epochs, grouped by length; see bucket_batch. Strings are drawn at
        random. The content of all rows is decided first, because padding depends on it; then only
        these rows are read.
        """
        c, model = config.data, config.model
        assert isinstance(model, SpeechConfig)
        assert isinstance(c, SpeechDataConfig)
        batch_size = config.train.batch_size
        rng = np.random.default_rng((config.seed, TRAINING, step))
        speed_B = 1 + rng.uniform(-c.speed_change, c.speed_change, batch_size)
        tempo_B = np.ones(batch_size)
        if c.tempo_change:
            tempo_B = (1 + c.tempo_change) ** rng.uniform(-1, 1, batch_size)
        slowest_B = speed_B * np.minimum(tempo_B, 1)
        if self.string_clips > 1:
            plans = self._random_strings(model, rng, slowest_B)
            size_B = np.array([plan.size for plan in plans])
        else:
            chosen_B = self._epoch_clips(config, step)
            plans = [Plan((self.train[i],)) for i in chosen_B]
            size_B = np.round(self.seconds[chosen_B] * SAMPLE_RATE)
        # At most the model's window: a slower clip can be a little longer.
        n_frames = int(min((size_B / slowest_B).max(), audio.longest_clip(model))) // HOP
        seeds = [(config.seed, TRAINING, step, 1 + row) for row in range(batch_size)]
        rngs = list(map(np.random.default_rng, seeds[rows]))
        varied = [
            e._replace(samples_N=vary_samples(e.samples_N, c, speed, rng))
            for e, speed, rng in zip(self._read(plans[rows]), speed_B[rows], rngs, strict=True)
        ]
        batch = make_batch(varied, model, self.tokenizer, n_frames, [plan.text for plan in plans])
        if c.tempo_change:
            stretched = change_tempo(batch["source"], batch["source_mask"], tempo_B[rows])
            batch["source"], batch["source_mask"] = stretched
        batch["source"] = vary_spectrograms(batch["source"], batch["source_mask"], c, rngs)
        if model.predict_frames:
            batch |= frame_targets(plans[rows], (speed_B * tempo_B)[rows], self.tokenizer, batch)
        return batch

    def _random_strings(
        self, model: SpeechConfig, rng: np.random.Generator, speed_B: np.ndarray
    ) -> list[Plan]:
        """Strings of similar length, so that a batch has little padding."""
        pool = Strings(self.train, self.string_clips)
        n_widths = audio.N_WIDTHS
        longest = audio.longest_clip(model) * rng.integers(1, n_widths + 1) / n_widths
        sizes = longest * rng.uniform(0.4, 1, len(speed_B)) * np.minimum(speed_B, 1)
        return [pool.draw(rng, self.string_clips, int(size)) for size in sizes]

    def _epoch_clips(self, config: Config, step: int) -> np.ndarray:
        """The training clips (B,) of a step's batch, all padded to the same length."""
        model = config.model
        assert isinstance(model, SpeechConfig)
        frames = np.minimum(self.seconds * SAMPLE_RATE // HOP, 2 * model.source_block_size)
        width = np.array([audio.padded_frames(int(n), model) for n in frames])
        buckets = [np.flatnonzero(width == w) for w in np.unique(width)]
        sizes = tuple(map(len, buckets))
        bucket, chosen_B = bucket_batch(sizes, config.train.batch_size, config.seed, step)
        return buckets[bucket][chosen_B]

    def validation(self, config: Config, batch_size: int, rows: slice = ALL) -> Iterator[Batch]:
        """These rows of the batches of the validation split, leaves (1, B, ...).

        Each clip once, or the same strings every time. Rows of padding have loss weight zero.
        """
        model = config.model
        assert isinstance(model, SpeechConfig)
        if self.string_clips > 1:
            plans = self._val_strings(N_VAL_STRINGS, model)
            plans.sort(key=lambda plan: plan.size)
            sizes = [plan.size for plan in plans]
        else:
            plans = [Plan((clip,)) for clip in self.val]
            sizes = [round(seconds * SAMPLE_RATE) for seconds in self.val_seconds]
        for first in range(0, len(plans), batch_size):
            part = plans[first : first + batch_size]
            part += part[-1:] * (batch_size - len(part))
            n_frames = max(sizes[first : first + batch_size]) // HOP
            examples, texts = self._read(part[rows]), [plan.text for plan in part]
            batch = make_batch(examples, model, self.tokenizer, n_frames, texts)
            batch["loss_weights"][first + np.arange(batch_size)[rows] >= len(plans)] = 0
            yield {name: leaf[None] for name, leaf in batch.items()}

    def val_examples(self, n: int, model: SpeechConfig) -> list[Example]:
        """n examples of the validation split, the same ones every time."""
        if self.string_clips > 1:
            plans = self._val_strings(n, model)
        else:
            plans = [Plan((clip,)) for clip in self.val[:: max(1, len(self.val) // n)]]
        return [example for example in self._read(plans[:n]) if example.weight]

    def test_strings(self, model: SpeechConfig) -> list[Example]:
        """300 strings of three to five test clips of one speaker, the same ones every time."""
        (n_fewest, n_most), longest = TEST_STRING_WORDS, audio.longest_clip(model)
        plans = Strings(self.test, n_most).fixed(n_fewest, N_TEST_STRINGS, longest)
        return [plan.read(recordings.read_word) for plan in plans]

    def _val_strings(self, n: int, model: SpeechConfig) -> list[Plan]:
        longest = audio.longest_clip(model)
        return Strings(self.val, self.string_clips).fixed(1, n, longest)

    def _read(self, plans: Sequence[Plan]) -> list[Example]:
        """Words of strings are kept in memory. Whole recordings are read from disk every time.

        Raises UserError if several recordings are wanted and none can be read: their disk is gone.
        """
        if self.string_clips > 1:
            examples = [plan.read_or_silence(recordings.read_word) for plan in plans]
        else:
            read = recordings.map_ahead(lambda plan: plan.read_or_silence(audio.read), plans)
            examples = list(read)
        if len({plan.clips for plan in plans}) > 1 and not any(e.weight for e in examples):
            raise UserError(
                f"none of {len(plans)} recordings of {self.source} can be read any more; see that "
                "its disk is there, and start again: the run continues from its last checkpoint"
            )
        return examples


def make_batch(
    examples: Sequence[Example],
    model: SpeechConfig,
    tok: SpeechTokenizer,
    n_frames: int | None = None,
    all_texts: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """The batch of these examples; texts are padded to a multiple of a quarter of block_size.

    If these are only some rows of a batch, n_frames is the length of the batch's longest clip, and
    all_texts are the batch's texts.
    """
    width = None if n_frames is None else audio.padded_frames(n_frames, model)
    clips = [e.samples_N[: width and width * HOP] for e in examples]
    mel_BTM, mask_BT = audio.features(clips, model, width)
    start, n_start = list(tok.start_ids), len(tok.start_ids)
    rows = [[*start, *tok.target.encode(e.text), tok.end] for e in examples]
    texts = [e.text for e in examples] if all_texts is None else all_texts
    longest = n_start + max(len(tok.target.encode(text)) for text in texts)
    quarter = -(-model.block_size // 4)
    n_tokens = min(-(-longest // quarter) * quarter, model.block_size)
    ids_BT = np.full((len(rows), n_tokens + 1), tok.end, np.int32)
    weights_BT = np.zeros((len(rows), n_tokens), np.float32)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row)] = row
        weights_BT[i, n_start - 1 : len(row) - 1] = examples[i].weight
    return {
        "source": mel_BTM,
        "source_mask": mask_BT,
        "tokens": ids_BT[:, :-1],
        "targets": ids_BT[:, 1:],
        "loss_weights": weights_BT,
    }


def load(config: Config, tok: Tokenizer | None = None) -> SpeechData:
    """Finds, or downloads, the clips that a configuration names, and splits them.

    Uses `tok`, or makes a tokenizer from the training and validation texts. Raises UserError for a
    folder without clips, a clip that is broken or too long, a text that is too long, and an empty
    split.
    """
    c, model = config.data, config.model
    assert isinstance(model, SpeechConfig)
    assert isinstance(c, SpeechDataConfig)
    path = speech_sources.find(c)
    folder, source = path if path.is_dir() else path.parent, str(c.path or c.name)
    clips = recordings.find_clips(path, may_be_missing=c.on_broken == "skip")
    size = {clip.path: clip.path.stat().st_size if clip.path.is_file() else -1 for clip in clips}
    listing = [(clip.path.name, size[clip.path], clip.text) for clip in clips]
    sha256 = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    parts = recordings.split(clips, c.val_fraction, c.hold_out, source, folder)
    files: dict[str, FileFacts] = {
        recordings.key(clip, folder): {"split": clip.split, "bytes": size[clip.path]}
        for clip in sum(parts, ())
    }
    # The test texts are never encoded. Those of broken files are: once mended, they are used.
    between = " " if c.tokenizer == "char" else "\n"
    texts = between.join(clip.text for part in parts[:2] for clip in part)
    tok = tok or SpeechTokenizer(tokenizer.train(c.tokenizer, texts, c.vocab_size))
    assert isinstance(tok, SpeechTokenizer)
    measured = recording_checks.measure(sum(parts, ()), folder, c.on_broken)
    train, val, test = (
        tuple(clip for clip in measured if clip.split == name) for name in recordings.SPLITS
    )
    for name, part in (("training", train), ("validation", val)):
        if not part:
            raise UserError(f"{source}: {len(measured)} clips leave none for {name}; use more")
    if c.extra_clips:
        extra = speech_sources.extra_voices(train, c.extra_clips)
        train += tuple(recording_checks.measure(extra, extra[0].path.parent, "stop"))
        source += f" and {len(extra):,} clips by eSpeak"
    _check_texts((*train, *val), model, tok, c.string_clips)
    seconds = _check_lengths((*train, *val), model)
    train_seconds, val_seconds = seconds[: len(train)], seconds[len(train) :]
    return SpeechData(
        train, val, test, train_seconds, val_seconds, c.string_clips, tok, source, sha256, files
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
                + (f" (joined {string_clips} times)" if string_clips > 1 else "")
                + f", but --model.block-size {model.block_size} holds {room}; raise that, or leave "
                "the clip out"
            )


def _check_lengths(clips: Sequence[Clip], model: SpeechConfig) -> np.ndarray:
    """Seconds (N,) of every clip. Raises UserError for one longer than the model's window."""
    seconds = np.array([clip.seconds for clip in clips])
    longest = audio.longest_clip(model) / SAMPLE_RATE
    i = int(seconds.argmax())
    if seconds[i] > longest:
        raise UserError(
            f"{clips[i].path} is {seconds[i]:.1f} s long, more than the {longest:.1f} s of "
            f"--model.source-block-size {model.source_block_size}; raise that, or leave it out"
        )
    return seconds
