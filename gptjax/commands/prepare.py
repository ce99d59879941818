"""`gptjax prepare`: tokenizes a corpus that is larger than memory, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from gptjax.command_line import parse_command
from gptjax.data import text_files
from gptjax.errors import UserError, exit_codes


@dataclass(frozen=True)
class Prepare:
    """Tokenize texts of any size into a folder of token files.

    examples:
        gptjax prepare --out tokens corpus.txt
        gptjax prepare --out tokens --tokenizer bpe --vocab-size 8192 a.txt b.txt
        gptjax prepare --out tokens --field story stories.jsonl.gz notes.zip folder
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Files, folders and archives, read in this order. As --data.path of gptjax train: UTF-8 texts,
    .gz, .zip, .jsonl, .csv, .parquet, folders of them, Hugging Face datasets."""
    out: Path
    """Folder to make. Train on it with --data.path."""
    field: str = ""
    """As --data.field of gptjax train: the field of a table that has the text."""
    tokenizer: Literal["char", "word", "byte", "gpt2", "bpe"] = "gpt2"
    """As --data.tokenizer of gptjax train."""
    vocab_size: int = 1024
    """Size of a bpe vocabulary. It is trained on the first 64 MB."""
    val_fraction: float = 0.1
    """Share of the tokens that is held out for validation, taken from the end."""


def main(argv: list[str]) -> None:
    with exit_codes():
        c = parse_command(Prepare, argv, "gptjax prepare")
        if c.tokenizer != "bpe" and c.vocab_size != Prepare.vocab_size:
            raise UserError(f"--vocab-size {c.vocab_size} is for --tokenizer bpe; add that")
        text_files.prepare(c.files, c.out, c.tokenizer, c.vocab_size, c.val_fraction, c.field)
