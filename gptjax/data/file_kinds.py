"""What a file is that is no text, by its first bytes, and what to do about it."""

import re
from typing import NamedTuple

N_BYTES = 1024
"""Bytes that `recognise` looks at."""


class Kind(NamedTuple):
    """A kind of file: its name in a message, and the fix."""

    name: str
    fix: str


_UNPACK = "unpack it first"
_SAVE = "save it as plain text (UTF-8)"
_TEXT = "name a text"
_SOUND = "name a text; docs/speech.md says how to train on sound"

GZIP = Kind("gzip inside gzip", _UNPACK)
ZIP = Kind("a zip archive inside another file", _UNPACK)
OFFICE = Kind("a Word, Excel or PowerPoint file", _SAVE)
OPEN_DOCUMENT = Kind("an OpenDocument file or an EPUB", _SAVE)
PARQUET = Kind("a Parquet file", "let its name end in .parquet")
UTF16 = Kind("UTF-16", "convert it, for example with iconv -f utf-16 -t utf-8 OLD > NEW")
UTF32 = Kind("UTF-32", "convert it, for example with iconv -f utf-32 -t utf-8 OLD > NEW")

# Each pattern is so long, or has such bytes, that no text begins with it by chance.
_SIGNATURES = {
    rb"\x1f\x8b": GZIP,
    rb"PK\x03\x04": ZIP,
    rb"PAR1[\0-\x1f]": PARQUET,
    rb"%PDF-": Kind("a PDF", "extract its text, for example with pdftotext"),
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": OFFICE,  # before 2007
    rb"{\\rtf": Kind("a rich text file (RTF)", _SAVE),
    rb"\xff\xfe\0\0|\0\0\xfe\xff": UTF32,
    rb"\xff\xfe|\xfe\xff": UTF16,
    rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|BM.{4}\0\0\0\0|RIFF.{4}WEBP": Kind(
        "an image", _TEXT
    ),
    rb"\0\0\0.ftyp(hei|avif)": Kind("an image", _TEXT),
    rb"RIFF.{4}WAVE|fLaC\0|OggS\0|ID3[\2-\4]|\xff[\xf2-\xfb]": Kind("a sound file", _SOUND),
    rb"\0\0\0.ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ": Kind("a sound or a video", _SOUND),
    rb"BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd": Kind("compressed, but not by gzip", _UNPACK),
    rb"7z\xbc\xaf\x27\x1c|Rar!\x1a|.{257}ustar": Kind("a 7z, RAR or tar archive", _UNPACK),
    rb"SQLite format 3\0": Kind("an SQLite database", "export its text as .csv"),
    rb"ARROW1\0": Kind("an Arrow file", "name the folder of the Hugging Face dataset"),
    rb"\x93NUMPY|\x89HDF\r|GGUF[\1-\x1f]\0|\x80[\2-\5]": Kind("arrays or objects", _TEXT),
    rb"\x7fELF|MZ[^ -~]|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe": Kind("a program", _TEXT),
}
_PATTERNS = [(re.compile(pattern, re.DOTALL), kind) for pattern, kind in _SIGNATURES.items()]


def recognise(head: bytes) -> Kind | None:
    """The kind of a file that begins with these bytes; None for what may be a text."""
    for pattern, kind in _PATTERNS:
        if pattern.match(head):
            return kind
    # UTF-16 without a byte-order mark: every second byte of Western text is zero, no other one is.
    even, odd = head[::2], head[1::2]
    for letters, zeros in ((even, odd), (odd, even)):
        if len(zeros) >= 8 and 0 not in letters and zeros.count(0) > 0.9 * len(zeros):
            return UTF16
    return None


def not_utf8(name: str, byte: int, offset: int, is_first: bool) -> str:
    """The message for a byte that is not UTF-8. is_first: everything before it is ASCII."""
    said = f"{name} is not UTF-8: byte 0x{byte:02x} at offset {offset}"
    if is_first and bytes([byte]).decode("cp1252", "ignore"):
        # cp1252 has the characters of latin1, and also curly quotes and dashes at 0x80 to 0x9f.
        return f"{said}; convert it, for example with iconv -f cp1252 -t utf-8 OLD > NEW"
    what = "neither UTF-8 nor cp1252" if is_first else "damaged UTF-8"
    return f"{said}; it is {what}: copy it again, or drop such bytes with iconv -c -t utf-8"
