"""Texts in memory, and token files made of them: a corpus larger than memory, tokenized once.

Token files are memory-mapped for training.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from gptjax import json_files, reading
from gptjax.atomic import atomic_folder
from gptjax.data import tokenizer
from gptjax.data.corpus import N_SHOWN, Corpus
from gptjax.data.tokenizer import PairTokenizer, SpeechTokenizer, TextTokenizer
from gptjax.errors import UserError
from gptjax.reading import host_memory, in_words

BYTES_PER_BYTE = 9
"""Memory that a byte of a text needs while it is tokenized, at least."""
BPE_SAMPLE = 1 << 26
"""Characters at the start of a corpus that a BPE is trained on."""


def read_corpus(path: Path, field: str = "", has_tables: bool = True) -> tuple[str, str, str]:
    """The text of a file or of all that a folder or archive has, its SHA-256, and what was read.

    field, has_tables: see Corpus. The SHA-256 is that of a text file's bytes; else of the text.
    """
    corpus = Corpus([path], field, "--data.path ", has_tables)
    is_part = corpus.items[0].is_part  # else a byte-order mark counts, as it did in older runs
    pieces, digest, n_bytes = [], hashlib.sha256(), 0
    most = host_memory() // BYTES_PER_BYTE
    for piece in corpus.pieces(with_mark=not is_part):
        raw = piece.encode()
        digest.update(raw)
        n_bytes += len(raw)
        if n_bytes > most:
            raise UserError(
                f"--data.path {path}: it has more than {in_words(most)}, too much for a memory of "
                f"{in_words(host_memory())}; make token files of it with gptjax prepare"
            )
        pieces.append(piece)
    text = "".join(pieces).removeprefix("\ufeff")
    return text, digest.hexdigest(), corpus.describe(len(text), text)


def read_text(path: Path) -> tuple[str, str]:
    """A UTF-8 file's text, without a byte-order mark, and the SHA-256 of its bytes."""
    return read_corpus(path, has_tables=False)[:2]


def prepare(
    files: Sequence[Path],
    out: Path,
    kind: str,
    vocab_size: int = 1024,
    val_fraction: float = 0.1,
    field: str = "",
) -> None:
    """Writes OUT/{train.bin, val.bin, tokenizer.json, prepared.json}, whole or not at all.

    files, field: see Corpus. Reads them in pieces of 16 MB, so memory use does not grow with the
    corpus. Raises UserError for a file that cannot be read, and for a folder that exists or cannot
    be written.
    """
    if not files:
        raise UserError("prepare needs at least one text file")
    if not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction is {val_fraction}, but must be in (0, 1)")
    if out.exists():
        raise UserError(f"--out {out} exists; name a new folder")
    if kind not in ("byte", "gpt2") and (pipes := [path for path in files if path.is_fifo()]):
        raise UserError(f"{pipes[0]} is a pipe, and --tokenizer {kind} reads twice; name a file")
    corpus = Corpus(files, field)
    if field and not corpus.has_table():
        tables = ", ".join(corpus.tables)
        raise UserError(f"--field {field} is for tables ({tables}) and data sets; leave it out")
    try:
        with atomic_folder(out) as part:
            pieces = corpus.pieces()
            if kind == "gpt2":  # a broken input is named before the table is fetched
                pieces = itertools.chain([next(pieces)], pieces)
            tok = _train_tokenizer(corpus, kind, vocab_size)
            dtype = token_dtype(tok)
            digest, n_characters, start = hashlib.sha256(), 0, ""
            with open(part / "train.bin", "wb") as tokens_file:
                for text in pieces:
                    digest.update(text.encode())
                    n_characters += len(text)
                    start += text[: N_SHOWN - len(start)]
                    tokens_file.write(
                        tok.encode(text).astype(dtype).tobytes()
                    )  # tofile hides the reason
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
        f"data: {corpus.describe(n_characters, start)}\n"
        f"{out}: {n_train:,} training and {n_tokens - n_train:,} validation tokens, "
        f"vocabulary {tok.vocab_size:,}; train with --data.path {out}"
    )


def is_prepared(path: Path) -> bool:
    """Whether this is a folder that `prepare` wrote, or what is left of one."""
    return any((path / name).is_file() for name in ("prepared.json", "train.bin", "val.bin"))


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
        files = [folder / "train.bin", folder / "val.bin"]
        for path in files:
            reading.check(path)
        train, val = (np.memmap(path, dtype, "r") for path in files)
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


def _train_tokenizer(corpus: Corpus, kind: str, vocab_size: int) -> TextTokenizer:
    """Characters and words are collected from the whole corpus. A BPE is trained on its start."""
    sample = ""
    if kind in ("char", "word"):
        distinct: set[str] = set()
        for text in corpus.pieces():
            distinct.update(text if kind == "char" else text.split())
        sample = ("" if kind == "char" else " ").join(distinct)
    elif kind == "bpe":
        for text in corpus.pieces():
            sample += text
            if len(sample) >= BPE_SAMPLE:
                break
    return tokenizer.train(kind, sample, vocab_size)
