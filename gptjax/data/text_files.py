"""UTF-8 text files, and token files made of them: a corpus larger than memory, tokenized once.

Text files are read whole, or in pieces if they are larger than memory. Token files are
memory-mapped for training.
"""

import codecs
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from gptjax import json_files, reading
from gptjax.atomic import atomic_folder
from gptjax.data import tokenizer
from gptjax.data.tokenizer import PairTokenizer, SpeechTokenizer, TextTokenizer
from gptjax.errors import UserError
from gptjax.reading import host_memory, in_words

PIECE_BYTES = 1 << 24
LONGEST_WORD = 1 << 26
"""Longest run of characters, without a blank after a word, that is kept in one piece."""
BYTES_PER_BYTE = 9
"""Memory that a byte of a text needs while it is tokenized, at least."""
BPE_SAMPLE = 1 << 26
"""Characters at the start of a corpus that a BPE is trained on."""


def read_text(path: Path) -> tuple[str, str]:
    """A UTF-8 file's text, without a byte-order mark, and the SHA-256 of its bytes."""
    try:
        raw = reading.read_bytes(path, host_memory() // BYTES_PER_BYTE, pipe=True)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UserError(
                f"--data.path {path}: {error.strerror}, too much for a memory of "
                f"{in_words(host_memory())}; make token files of it with gptjax prepare"
            ) from None
        raise UserError(f"--data.path {path}: {error.strerror}; name a UTF-8 text file") from None
    if not raw:
        raise UserError(f"--data.path {path} is empty; name a UTF-8 text file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, raw[error.start], error.start) from None
    return text.removeprefix("\ufeff"), hashlib.sha256(raw).hexdigest()


def read_pieces(files: Sequence[Path]) -> Iterator[str]:
    """The text of the files, without byte-order marks, in pieces of about PIECE_BYTES.

    Pieces end between a word and a blank or line break. No BPE merges across that place, so
    encoding the pieces equals encoding the whole file. Raises UserError for a file that is
    missing, empty or not UTF-8.
    """
    for path in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset, pending, at_start = 0, "", True
        try:
            reading.check(path, pipe=True)
            with open(path, "rb") as file:
                while raw := file.read(PIECE_BYTES):
                    new = decoder.decode(raw)
                    offset += len(raw)
                    if at_start and new:
                        new, at_start = new.removeprefix("\ufeff"), False
                    pending += new
                    word = re.match(r"(?s).*\S(?=[ \n])", pending)  # greedy: up to the last word
                    too_long = len(pending) > LONGEST_WORD
                    cut = word.end() if word else len(pending) * too_long
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


def _not_utf8(path: Path, byte: int, offset: int) -> UserError:
    return UserError(
        f"--data.path {path} is not UTF-8: byte 0x{byte:02x} at offset {offset}; convert it, "
        "for example with iconv -f latin1 -t utf-8"
    )


def prepare(
    files: Sequence[Path], out: Path, kind: str, vocab_size: int = 1024, val_fraction: float = 0.1
) -> None:
    """Writes OUT/{train.bin, val.bin, tokenizer.json, prepared.json}, whole or not at all.

    Reads the files in pieces of 16 MB, so memory use does not grow with the corpus. Raises
    UserError for a text that is not UTF-8, and for a folder that exists or cannot be written.
    """
    if not files:
        raise UserError("prepare needs at least one text file")
    if not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction is {val_fraction}, but must be in (0, 1)")
    if out.exists():
        raise UserError(f"--out {out} exists; name a new folder")
    tok = _train_tokenizer(files, kind, vocab_size)
    dtype = token_dtype(tok)
    try:
        with atomic_folder(out) as part:
            digest = hashlib.sha256()
            with open(part / "train.bin", "wb") as tokens_file:
                for text in read_pieces(files):
                    digest.update(text.encode())
                    tokens_file.write(tok.encode(text).astype(dtype))  # tofile hides the reason
            n_tokens = (part / "train.bin").stat().st_size // dtype.itemsize
            n_train = int(n_tokens * (1 - val_fraction))
            with open(part / "train.bin", "r+b") as train, open(part / "val.bin", "wb") as val:
                train.seek(n_train * dtype.itemsize)
                shutil.copyfileobj(train, val)
                train.truncate(n_train * dtype.itemsize)
            meta = {"dtype": dtype.name, "sha256": digest.hexdigest(), "tokens": n_tokens}
            (part / "prepared.json").write_text(json.dumps(meta) + "\n")
            (part / "tokenizer.json").write_text(json.dumps(tok.to_dict()) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name a writable folder") from None
    print(
        f"{out}: {n_train:,} training and {n_tokens - n_train:,} validation tokens, "
        f"vocabulary {tok.vocab_size:,}; train with --data.path {out}"
    )


def open_prepared(folder: Path) -> tuple[np.ndarray, np.ndarray, TextTokenizer, str]:
    """Training and validation tokens (memory-mapped), the tokenizer, the SHA-256 of the text.

    Raises UserError for a folder that `prepare` did not write.
    """
    fix = "its files belong together"
    try:
        meta = json_files.read(folder / "prepared.json", _Prepared, fix)
        tok = tokenizer.read(folder / "tokenizer.json")
        assert not isinstance(tok, PairTokenizer | SpeechTokenizer)
        dtype = np.dtype(meta["dtype"])
        train, val = (np.memmap(folder / f"{split}.bin", dtype, "r") for split in ("train", "val"))
        if len(train) + len(val) != meta["tokens"]:
            found = f"{len(train) + len(val):,} tokens in place of {meta['tokens']:,}"
            raise UserError(f"it has {found}; {fix}")
        return train, val, tok, meta["sha256"]
    except (OSError, ValueError, UserError) as error:  # ValueError: a file of another size
        raise UserError(
            f"--data.path {folder} is not a folder of token files ({error}); make one with "
            "gptjax prepare"
        ) from None


class _Prepared(TypedDict):
    """The form of prepared.json."""

    dtype: Literal["uint16", "int32"]
    sha256: str
    tokens: int


def token_dtype(tok: TextTokenizer) -> np.dtype[Any]:
    """The smallest type that token ids are stored in."""
    return np.dtype(np.uint16 if tok.vocab_size <= 1 << 16 else np.int32)


def _train_tokenizer(files: Sequence[Path], kind: str, vocab_size: int) -> TextTokenizer:
    """Characters and words are collected from the whole corpus. A BPE is trained on its start."""
    sample = ""
    if kind in ("char", "word"):
        distinct: set[str] = set()
        for text in read_pieces(files):
            distinct.update(text if kind == "char" else text.split())
        sample = ("" if kind == "char" else " ").join(distinct)
    elif kind == "bpe":
        for text in read_pieces(files):
            sample += text
            if len(sample) >= BPE_SAMPLE:
                break
    return tokenizer.train(kind, sample, vocab_size)
