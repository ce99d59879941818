"""Text as batches of windows, each a pure function of (seed, step).

Tokens are one flat array per split, in memory or memory-mapped; windows of block_size + 1 are
cut out of it on the host. That costs microseconds and a thread of the training loop hides it,
so one path serves every size of corpus.

`gptjax prepare` writes token files for a corpus larger than memory.
"""

import codecs
import functools
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config import Config, TextDataConfig
from gptjax.data import datasets, tokenizer
from gptjax.data.tokenizer import TextTokenizer, Tokenizer
from gptjax.errors import UserError

Batch = dict[str, np.ndarray]

# Streams of random numbers that must not meet.
TRAINING, SAMPLED_EVALUATION = 0, 1

ALL = slice(None)
"""The rows of a batch that one process makes, when it is the only one."""

# Size of one dispatch of an evaluation, between which a signal is heard.
EVALUATION_TOKENS = 32_768

# Size of the pieces, in bytes, in which `prepare` reads a corpus, and what it trains a BPE on.
PREPARE_PIECE, PREPARE_BPE_SAMPLE = 1 << 24, 1 << 26


@dataclass(frozen=True)
class TextData:
    """A tokenized text, split into training and validation."""

    train: np.ndarray
    val: np.ndarray
    tokenizer: TextTokenizer
    source: str
    """Where it came from, for people."""
    sha256: str
    """Of the text's bytes: a run refuses to continue on another text."""

    one_shape = True
    """Every batch is like every other, so that many steps can share a dispatch."""
    sample_flags = ""
    """What sample.py wants besides the run."""

    @property
    def sizes(self) -> dict[str, int]:
        return {"train_tokens": len(self.train), "val_tokens": len(self.val)}

    def tokens_per_sequence(self, config: Config) -> float:
        """Every window has as many."""
        return config.model.block_size

    def batch(self, config: Config, step: int, rows: slice = ALL) -> Batch:
        """These rows of the training batch of a step, leaves (B, T).

        config.data.windows says how it is cut.
        """
        sizes = config.model.block_size, config.train.batch_size
        assert isinstance(config.data, TextDataConfig)
        if config.data.windows == "epochs":
            return epoch_batch(self.train, *sizes, config.seed, step, rows)
        return random_batch(self.train, *sizes, config.seed, TRAINING, step, rows)

    def validation(self, config: Config, batch_size: int, rows: slice = ALL) -> Iterator[Batch]:
        """These rows of the batches of the whole validation split, in groups of (K, B, T)."""
        return whole_split(self.val, config.model.block_size, batch_size, rows)

    def sampled_validation(self, config: Config, rows: slice = ALL) -> Iterator[Batch]:
        """The seed's protocol: random batches, the same ones every time, leaves (1, B, T)."""
        sizes = config.model.block_size, config.train.batch_size
        for step in range(config.train.eval_batches):
            batch = random_batch(self.val, *sizes, config.seed, SAMPLED_EVALUATION, step, rows)
            yield {name: leaf[None] for name, leaf in batch.items()}


def load(config: TextDataConfig, block_size: int, tok: Tokenizer | None = None) -> TextData:
    """Reads, or fetches, and tokenizes the text that a configuration names.

    With the tokenizer given, or one of the kind that the configuration names. Raises UserError
    when the text is missing, empty, not UTF-8, was prepared with another tokenizer, or a split is
    too short to cut a window of block_size + 1 tokens from.
    """
    if config.path and config.path.is_dir():
        data = _load_prepared(config.path)
        if tok is not None and tok.to_dict() != data.tokenizer.to_dict():
            raise UserError(
                f"--data.path {config.path} was prepared with another tokenizer than that of the "
                "run to start from; give the text itself"
            )
    else:
        text, sha256 = read_text(config.path or datasets.fetch("tinyshakespeare"))
        tok = tok or tokenizer.train(config.tokenizer, text, config.vocab_size)
        assert isinstance(tok, TextTokenizer)
        n_train = int(len(text) * (1 - config.val_fraction))
        train, val = tok.encode(text[:n_train]), tok.encode(text[n_train:])
        source = str(config.path or "tinyshakespeare")
        data = TextData(train.astype(_dtype(tok)), val.astype(_dtype(tok)), tok, source, sha256)
    for split, tokens in (("training", data.train), ("validation", data.val)):
        if len(tokens) < block_size + 1:
            raise UserError(
                f"{data.source}: the {split} split has {len(tokens)} tokens, fewer than "
                f"--model.block-size {block_size} + 1; use more text or a smaller block size"
            )
    return data


def read_text(path: Path) -> tuple[str, str]:
    """A UTF-8 file's text (less a byte-order mark) and the SHA-256 of its bytes."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"--data.path {path}: {error.strerror}; name a UTF-8 text file") from None
    if not raw:
        raise UserError(f"--data.path {path} is empty; name a UTF-8 text file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, raw[error.start], error.start) from None
    return text.removeprefix("\ufeff"), hashlib.sha256(raw).hexdigest()


def random_batch(
    tokens: np.ndarray,
    block_size: int,
    batch_size: int,
    seed: int,
    stream: int,
    step: int,
    rows: slice = ALL,
) -> Batch:
    """Windows at uniformly random places, leaves (B, T); a pure function of its arguments."""
    rng = np.random.default_rng((seed, stream, step))
    starts = rng.integers(0, len(tokens) - block_size, batch_size)
    return _windows(tokens, starts[rows], block_size)


def epoch_batch(
    tokens: np.ndarray, block_size: int, batch_size: int, seed: int, step: int, rows: slice = ALL
) -> Batch:
    """Windows side by side, each once an epoch, leaves (B, T); a pure function of its arguments.

    Every epoch has its own order, and its own place in the text where the first window begins.
    """
    n_windows = _windows_per_epoch(len(tokens), block_size)
    starts = [
        _epoch(len(tokens), block_size, seed, number // n_windows)[number % n_windows]
        for number in range(step * batch_size, (step + 1) * batch_size)[rows]
    ]
    return _windows(tokens, np.array(starts), block_size)


def _windows_per_epoch(n_tokens: int, block_size: int) -> int:
    """One fewer than fit, so that the first may begin at different places."""
    return max(1, n_tokens // block_size - 1)


@functools.lru_cache(maxsize=2)
def _epoch(n_tokens: int, block_size: int, seed: int, epoch: int) -> np.ndarray:
    """Where the windows of an epoch start, in their order."""
    n_windows = _windows_per_epoch(n_tokens, block_size)
    rng = np.random.default_rng((seed, TRAINING, epoch))
    first = rng.integers(n_tokens - n_windows * block_size)
    return first + block_size * rng.permutation(n_windows)


def _windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> Batch:
    """Windows of block_size + 1 tokens that begin at these places, as inputs and targets."""
    windows = tokens[starts[..., None] + np.arange(block_size + 1)].astype(np.int32)
    weights = np.ones((*starts.shape, block_size), np.float32)
    return {"tokens": windows[..., :-1], "targets": windows[..., 1:], "loss_weights": weights}


def whole_split(
    tokens: np.ndarray, block_size: int, batch_size: int, rows: slice = ALL
) -> Iterator[Batch]:
    """Windows side by side: every token but the first is a target, exactly once.

    In groups of leaves (K, B, T), all of one shape; what pads the last group has weight zero.
    """
    n_batches = -(-(len(tokens) - 1) // (block_size * batch_size))
    group = max(1, min(n_batches, EVALUATION_TOKENS // (block_size * batch_size)))
    size = group * batch_size * block_size
    starts_KB = np.arange(0, size, block_size).reshape(group, batch_size)[:, rows]
    for first in range(0, len(tokens) - 1, size):
        piece = tokens[first : first + size + 1]
        batch = _windows(np.pad(piece, (0, size + 1 - len(piece))), starts_KB, block_size)
        place_KBT = starts_KB[..., None] + np.arange(1, block_size + 1)  # of the targets
        yield batch | {"loss_weights": (place_KBT < len(piece)).astype(np.float32)}


def _dtype(tok: TextTokenizer) -> Any:
    return np.uint16 if tok.vocab_size <= 1 << 16 else np.int32


def _not_utf8(path: Path, byte: int, offset: int) -> UserError:
    return UserError(
        f"--data.path {path} is not UTF-8: byte 0x{byte:02x} at offset {offset}; convert it, "
        "for example with iconv -f latin1 -t utf-8"
    )


# --- token files, for corpora larger than memory


def prepare(
    files: tuple[Path, ...], out: Path, kind: str, vocab_size: int = 1024, val_fraction: float = 0.1
) -> None:
    """Writes OUT/{train.bin, val.bin, tokenizer.json, prepared.json}, whole or not at all.

    Memory stays within a few pieces of 16 MB, however large the corpus. Raises UserError for text
    that is not UTF-8 and for a folder that exists or cannot be written.
    """
    if not files:
        raise UserError("prepare needs at least one text file")
    if not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction is {val_fraction}, but must be in (0, 1)")
    if out.exists():
        raise UserError(f"--out {out} exists; name a new folder")
    tok = _train_on_pieces(files, kind, vocab_size)
    dtype = np.dtype(_dtype(tok))
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        digest = hashlib.sha256()
        with open(part / "all.bin", "wb") as tokens_file:
            for text in _pieces(files):
                digest.update(text.encode())
                tok.encode(text).astype(dtype).tofile(tokens_file)
        n_tokens = (part / "all.bin").stat().st_size // dtype.itemsize
        n_train = int(n_tokens * (1 - val_fraction))
        with open(part / "all.bin", "r+b") as train, open(part / "val.bin", "wb") as val:
            train.seek(n_train * dtype.itemsize)
            shutil.copyfileobj(train, val)
            train.truncate(n_train * dtype.itemsize)
        (part / "all.bin").rename(part / "train.bin")
        meta = {"dtype": dtype.name, "sha256": digest.hexdigest(), "tokens": n_tokens}
        (part / "prepared.json").write_text(json.dumps(meta) + "\n")
        (part / "tokenizer.json").write_text(json.dumps(tok.to_dict()) + "\n")
        part.rename(out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name a writable folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(
        f"{out}: {n_train:,} training and {n_tokens - n_train:,} validation tokens, "
        f"vocabulary {tok.vocab_size:,}; train with --data.path {out}"
    )


def _train_on_pieces(files: tuple[Path, ...], kind: str, vocab_size: int) -> TextTokenizer:
    """Characters and words need one pass over everything; a BPE a sample of the beginning."""
    if kind == "char":
        characters: set[str] = set()
        for text in _pieces(files):
            characters |= set(text)
        return tokenizer.CharTokenizer.train("".join(characters))
    if kind == "word":
        words: set[str] = set()
        for text in _pieces(files):
            words |= set(text.split())
        return tokenizer.WordTokenizer(sorted(words))
    sample = ""
    if kind == "bpe":
        for text in _pieces(files):
            sample += text
            if len(sample) >= PREPARE_BPE_SAMPLE:
                break
    return tokenizer.train(kind, sample, vocab_size)


def _pieces(files: tuple[Path, ...]) -> Iterator[str]:
    """The files' text, less byte-order marks, in pieces that encode as the whole would.

    A BPE never merges the end of a word with the blank behind it (but several blanks it does), so
    that is where pieces are cut.
    """
    for path in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset, pending, at_start = 0, "", True
        try:
            with open(path, "rb") as file:
                while raw := file.read(PREPARE_PIECE):
                    new = decoder.decode(raw)
                    offset += len(raw)
                    if at_start and new:
                        new, at_start = new.removeprefix("\ufeff"), False
                    pending += new
                    word = re.match(r"(?s).*\S(?=[ \n])", pending)  # greedy: to the last one
                    endless = len(pending) > PREPARE_BPE_SAMPLE
                    cut = word.end() if word else len(pending) * endless
                    yield pending[:cut]
                    pending = pending[cut:]
            yield pending + decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            start = offset - len(decoder.getstate()[0]) + error.start
            raise _not_utf8(path, error.object[error.start], start) from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; name a UTF-8 text file") from None
        if not offset:
            raise UserError(f"{path} is empty; name a UTF-8 text file")


def _load_prepared(folder: Path) -> TextData:
    try:
        meta = json.loads((folder / "prepared.json").read_text())
        tok = tokenizer.text_tokenizer(json.loads((folder / "tokenizer.json").read_text()))
        train, val = (
            np.memmap(folder / f"{split}.bin", np.dtype(meta["dtype"]), "r")
            for split in ("train", "val")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--data.path {folder} is not a folder of token files ({error}); make one with "
            "gptjax prepare"
        ) from None
    return TextData(train, val, tok, str(folder), meta["sha256"])
