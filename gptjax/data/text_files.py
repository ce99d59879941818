"""UTF-8 text files: read whole, or in pieces if they are larger than memory."""

import codecs
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptjax.errors import UserError

PIECE_BYTES = 1 << 24
LONGEST_WORD = 1 << 26
"""Longest run of characters, without a blank after a word, that is kept in one piece."""


def read_text(path: Path) -> tuple[str, str]:
    """A UTF-8 file's text, without a byte-order mark, and the SHA-256 of its bytes."""
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
