"""Texts as people have them: a file, a folder, an archive, a table, a Hugging Face dataset.

A corpus is a sequence of items: files, members of a zip archive, or a dataset. An item's first
bytes and its name decide how its text is read. What cannot be read in a folder or an archive is
left out and named; a single file that cannot be read is an error.
"""

import codecs
import functools
import gzip
import math
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import IO, NamedTuple, NoReturn, cast

from gptjax import reading
from gptjax.data import file_kinds, rows
from gptjax.errors import UserError

TABLES: dict[str, rows.Rows] = {
    ".jsonl": rows.json_lines,
    ".ndjson": rows.json_lines,
    ".csv": rows.csv_rows,
    ".tsv": rows.csv_rows,
    ".parquet": rows.parquet_rows,
}
"""How files are read whose names end so. All others are plain text."""
PIECE_BYTES = 1 << 24
LONGEST_WORD = 1 << 26
"""Longest run of characters, without a blank after a word, that is kept in one piece."""
MOST_UNPACKED, MOST_RATIO = 1 << 30, 200
"""Most characters of a corpus, and most for every byte of its files; the larger number counts."""
N_SHOWN = 60
"""Characters of a corpus that a message shows."""
N_NAMED = 5
"""Files left out that a message names. It counts the others."""
FIX = "name a UTF-8 text file"
COPY = "copy it again, or unpack it first"


class Item(NamedTuple):
    """What a text is read from."""

    name: str
    """For messages; a member of an archive has the archive's name before its own."""
    n_bytes: float
    """On the disk; infinite for a pipe."""
    open: Callable[[], IO[bytes]] | None
    """None: a Hugging Face dataset."""
    is_part: bool = False
    """Of a folder or an archive."""


class TooLarge(UserError):
    """More text than files of this size have, unless somebody wants to fill a disk."""


class Corpus:
    """The items of some paths that can be read, in order."""

    def __init__(
        self, paths: Sequence[Path], field: str = "", flag: str = "", has_tables: bool = True
    ):
        """field: that of a table that has the text; "" if it is to be found. flag: for messages.
        has_tables: whether the names in TABLES are tables; else they are plain text.

        Folders and archives are read once, to find what cannot be read, and that is printed.
        Raises UserError if nothing is left, and for a path that does not exist.
        """
        self.paths, self.field, self.flag = paths, field, flag
        self.tables = TABLES if has_tables else {}
        self.used: set[str] = set()
        """The fields that were read."""
        self.split = ""
        """That was read of a Hugging Face dataset."""
        self.items: list[Item] = []
        n_found, left_out = 0, dict[str, str]()
        for path in paths:
            try:
                found = _items(path)
            except UserError as error:
                raise UserError(f"{flag}{error}") from None
            broken = self._broken([item for item in found if item.is_part])
            if found and len(broken) == len(found):
                raise UserError(f"{flag}{path} has no text{_listed(broken)}; {FIX}")
            self.items += (item for item in found if item.name not in broken)
            n_found, left_out = n_found + len(found), left_out | broken
        if not self.items:
            raise UserError(f"{flag}{' '.join(map(str, paths))} has no files; {FIX}")
        if left_out:
            files = f"left out: {len(left_out):,} of {n_found:,} files"
            print(f"{files}{_listed(left_out)}", file=sys.stderr, flush=True)

    def pieces(self, with_mark: bool = False) -> Iterator[str]:
        """The text, in pieces of about PIECE_BYTES. with_mark: byte-order marks are part of it.

        Pieces end between a word and a blank or line break, and at the end of an item. No BPE
        merges across that place, so encoding the pieces equals encoding the items. Raises
        UserError for an item that cannot be read, and for more text than such files can have.
        """
        limited = _Limit(self.items)
        for item in self.items:
            at_start = not with_mark
            try:
                for piece in _cut(limited.check(item.name, self._texts(item))):
                    yield piece.removeprefix("\ufeff") if at_start else piece
                    at_start = False
            except UserError as error:
                raise type(error)(f"{self.flag}{error}") from None

    def has_table(self) -> bool:
        """Whether any item has fields."""
        names = (PurePath(item.name) for item in self.items if item.open)
        names = [p.with_suffix("") if p.suffix.lower() == ".gz" else p for p in names]
        return len(names) < len(self.items) or any(p.suffix.lower() in self.tables for p in names)

    def describe(self, n_characters: int, start: str) -> str:
        """What was read, in words: "3 files in notes/, 12,345 characters: 'First ...'"."""
        if len(self.items) > 1 or self.items[0].is_part:
            places = f" in {self.paths[0]}" + "/" * self.paths[0].is_dir()
            files = "1 file" if len(self.items) == 1 else f"{len(self.items):,} files"
            what = files + places * (len(self.paths) == 1)
        else:
            what = str(self.paths[0])
        if self.items[0].open is None:
            what += f", split {self.split} of a dataset" if self.split else ", a dataset"
        field = f", field {' or '.join(sorted(self.used))}" if self.used else ""
        more = "..." if n_characters > N_SHOWN else ""
        return f"{what}{field}, {n_characters:,} characters: {start[:N_SHOWN]!r}{more}"

    def _broken(self, items: list[Item]) -> dict[str, str]:
        """{name: why} of the items that cannot be read."""
        broken, limited = {}, _Limit(items)
        for item in items:
            try:
                for _ in limited.check(item.name, self._texts(item)):
                    pass
            except TooLarge as error:
                raise UserError(f"{self.flag}{error}") from None
            except UserError as error:
                broken[item.name] = str(error)
        return broken

    def _texts(self, item: Item) -> Iterator[str]:
        """The text of an item, in parts of any length. A part of a corpus ends with a line."""
        if item.open is None:
            self.split, dataset = rows.open_dataset(Path(item.name))
            found = rows.dataset_rows(item.name, dataset, self.field)
            yield from rows.texts(item.name, found, self.field, self.used)
            return
        last = ""
        try:
            with item.open() as file:
                for text in self._read(item.name, PurePath(item.name), file):
                    yield text
                    last = text[-1:] or last
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, gzip.BadGzipFile) as error:
            raise UserError(f"{item.name} is damaged or encrypted ({error}); {COPY}") from None
        except OSError as error:
            raise UserError(f"{item.name}: {error.strerror or error}; {FIX}") from None
        if item.is_part and last != "\n":
            yield "\n"

    def _read(
        self, name: str, path: PurePath, file: IO[bytes], is_packed: bool = False
    ) -> Iterator[str]:
        """The text of an open file. path: its name decides; without .gz inside of that."""
        head = file.peek(file_kinds.N_BYTES)[: file_kinds.N_BYTES]  # pyright: ignore
        if not head:
            raise UserError(f"{name} is empty; {FIX}")
        kind, suffix = file_kinds.recognise(head), path.suffix.lower()
        if kind == file_kinds.GZIP and not is_packed:
            inner = path.with_suffix("") if suffix == ".gz" else path
            unpacked = cast(IO[bytes], gzip.GzipFile(fileobj=file))
            yield from self._read(name, inner, unpacked, is_packed=True)
        elif kind and (kind, suffix) != (file_kinds.PARQUET, ".parquet"):
            raise UserError(f"{name} is {kind.name}, not a text; {kind.fix}")
        elif read := self.tables.get(suffix):
            yield from rows.texts(name, read(name, file, self.field), self.field, self.used)
        else:
            yield from _decoded(name, file)


class _Limit:
    """Counts the characters that are read. An archive of a megabyte could have terabytes."""

    def __init__(self, items: Sequence[Item]):
        self._most = max(MOST_UNPACKED, MOST_RATIO * sum(item.n_bytes for item in items))
        self._n = 0

    def check(self, name: str, texts: Iterator[str]) -> Iterator[str]:
        """The texts of an item. Raises TooLarge."""
        for text in texts:
            self._n += len(text)
            if self._n > self._most:
                raise TooLarge(
                    f"{name}: with it there are more than {self._most:,} characters, over "
                    f"{MOST_RATIO} for every byte on the disk; if you trust that, unpack it first"
                )
            yield text


def _items(path: Path) -> list[Item]:
    """The items of a path. Raises UserError if it does not exist or is no archive that it seems."""
    if path.is_dir():
        if rows.is_dataset(path):
            n_bytes = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
            return [Item(str(path), n_bytes, None)]
        found: list[Item] = []
        for child in sorted(path.rglob("*")):
            if child.is_file() and not _is_hidden(child.relative_to(path)):
                try:
                    found += _items(child)
                except UserError as error:
                    found.append(Item(str(child), 0, functools.partial(_refuse, error)))
        return [item._replace(is_part=True) for item in found]
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
        n_bytes = path.stat().st_size if is_regular else math.inf
        with open(path if is_regular else "/dev/null", "rb") as file:
            is_archive = file.read(4) in (b"PK\3\4", b"PK\5\6")
    except (OSError, ValueError):  # said when it is read
        n_bytes, is_archive = 0, False
    if is_archive:
        return _members(path)
    return [Item(str(path), n_bytes, functools.partial(_open, path))]


def _members(path: Path) -> list[Item]:
    """The members of a zip archive, in its order."""
    try:
        archive = zipfile.ZipFile(path)  # closed with the last of its items
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} is damaged or encrypted ({error}); {COPY}") from None
    names = archive.namelist()
    documents = {"[Content_Types].xml": file_kinds.OFFICE, "mimetype": file_kinds.OPEN_DOCUMENT}
    for name, kind in documents.items():
        if name in names:
            raise UserError(f"{path} is {kind.name}, not a text; {kind.fix}")
    members = sorted(archive.infolist(), key=lambda member: member.filename)
    return [
        Item(f"{path}/{m.filename}", m.compress_size, functools.partial(archive.open, m), True)
        for m in members
        if not m.is_dir() and not _is_hidden(PurePath(m.filename))
    ]


def _open(path: Path) -> IO[bytes]:
    reading.check(path, pipe=True)
    return open(path, "rb")


def _refuse(error: UserError) -> NoReturn:
    raise error


def _is_hidden(path: PurePath) -> bool:
    """Whether a system keeps its notes there: .DS_Store, .git, __MACOSX."""
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _listed(broken: dict[str, str]) -> str:
    """ ": why; why; and 3 more", without what to do about each."""
    if not broken:
        return ""
    reasons = [text.partition("; ")[0] for text in list(broken.values())[:N_NAMED]]
    if len(broken) > N_NAMED:
        reasons.append(f"and {len(broken) - N_NAMED:,} more")
    return f": {'; '.join(reasons)}"


def _decoded(name: str, file: IO[bytes]) -> Iterator[str]:
    """The text of a UTF-8 file. Raises UserError for a byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, is_ascii = 0, True
    try:
        while raw := file.read(PIECE_BYTES):
            text = decoder.decode(raw)
            offset, is_ascii = offset + len(raw), is_ascii and text.isascii()
            yield text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        byte, start = error.object[error.start], offset - len(decoder.getstate()[0]) + error.start
        is_ascii = is_ascii and error.object[: error.start].isascii()
        raise UserError(file_kinds.not_utf8(name, byte, start, is_ascii)) from None


def _cut(texts: Iterator[str]) -> Iterator[str]:
    """Texts joined, and cut where Corpus.pieces says."""
    pending: list[str] = []
    n_pending = 0
    for text in texts:
        pending.append(text)
        n_pending += len(text)
        if n_pending < PIECE_BYTES:
            continue
        joined = "".join(pending)
        word = re.match(r"(?s).*\S(?=[ \n])", joined)  # greedy: up to the last word
        too_long = len(joined) > LONGEST_WORD
        cut = word.end() if word else len(joined) * too_long
        if cut:
            yield joined[:cut]
        pending, n_pending = [joined[cut:]], len(joined) - cut
    yield "".join(pending)
