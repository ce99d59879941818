"""Token files: a corpus larger than memory, tokenized once and memory-mapped for training."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.atomic import atomic_folder
from gptjax.data import tokenizer
from gptjax.data.text_files import read_pieces
from gptjax.data.tokenizer import CharTokenizer, TextTokenizer, WordTokenizer
from gptjax.errors import UserError

BPE_SAMPLE = 1 << 26
"""Characters at the start of a corpus that a BPE is trained on."""


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
                    tok.encode(text).astype(dtype).tofile(tokens_file)
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
    try:
        meta = json.loads((folder / "prepared.json").read_text())
        tok = tokenizer.text_tokenizer(json.loads((folder / "tokenizer.json").read_text()))
        dtype = np.dtype(meta["dtype"])
        train, val = (np.memmap(folder / f"{split}.bin", dtype, "r") for split in ("train", "val"))
        return train, val, tok, meta["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--data.path {folder} is not a folder of token files ({error}); make one with "
            "gptjax prepare"
        ) from None


def token_dtype(tok: TextTokenizer) -> np.dtype[Any]:
    """The smallest type that token ids are stored in."""
    return np.dtype(np.uint16 if tok.vocab_size <= 1 << 16 else np.int32)


def _train_tokenizer(files: Sequence[Path], kind: str, vocab_size: int) -> TextTokenizer:
    """Characters and words are collected from the whole corpus. A BPE is trained on its start."""
    if kind == "char":
        characters: set[str] = set()
        for text in read_pieces(files):
            characters |= set(text)
        return CharTokenizer.train("".join(characters))
    if kind == "word":
        words: set[str] = set()
        for text in read_pieces(files):
            words |= set(text.split())
        return WordTokenizer(sorted(words))
    sample = ""
    if kind == "bpe":
        for text in read_pieces(files):
            sample += text
            if len(sample) >= BPE_SAMPLE:
                break
    return tokenizer.train(kind, sample, vocab_size)
