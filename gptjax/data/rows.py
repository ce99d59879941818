"""Tables that have a text in every row: JSON Lines, CSV, Parquet, Hugging Face datasets.

A reader yields rows {field: value}. What is in a table may come from a stranger: lines are read
with a limit, and nothing in it is executed.
"""

import csv
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gptjax import json_files
from gptjax.data import file_kinds
from gptjax.errors import UserError, import_extra

Row = dict[str, Any]
Rows = Callable[[str, IO[bytes], str], Iterator[Row]]
"""Reads the rows of an open file. The arguments: its name, the file, the field or ""."""

USUAL = ("text", "content", "body", "document")
"""Names of the field that has the text, the likeliest first."""
MOST_LINE = 1 << 27
"""Bytes of a line, and of a field of a CSV."""
N_ROWS = 256
"""Rows that are read at once where the format is not read line by line."""
N_NAMED = 20
"""Fields that a message names."""
CARD = "README.md"
CARD_KEYS = ("dataset_info:", "configs:", "task_categories:", "size_categories:")
"""Entries at the start of the README.md of a data set on the Hugging Face hub."""


def texts(name: str, rows: Iterable[Row], field: str, used: set[str]) -> Iterator[str]:
    """The texts of the rows, each with a blank line after it. Adds the field to `used`.

    Raises UserError for a field that is missing or not found, and for a value that is no text. A
    row without a value is skipped.
    """
    column = None
    for number, row in enumerate(rows, 1):
        if column is None:
            column = find_field(name, row, field)
            used.add(column)
        if value := row.get(column):
            where = f"{name}, row {number}"
            json_files.check(value, str, where, "name a field of texts", column)
            yield f"{value}\n\n"


def find_field(name: str, row: Row, field: str) -> str:
    """The field that has the text: `field`, or else a usual name, or else the only text."""
    listed = ", ".join(map(str, list(row)[:N_NAMED])) + ", ..." * (len(row) > N_NAMED)
    if field:
        if field not in row:
            raise UserError(f"{name} has no field {field}; its fields are {listed}")
        return field
    usual = [found for word in USUAL for found in row if found.lower() == word]
    strings = [found for found, value in row.items() if isinstance(value, str) and _is_text(value)]
    candidates = usual[:1] or strings
    if len(candidates) != 1:
        raise UserError(
            f"{name} has the fields {listed}; name that of the text with --data.field "
            "(gptjax prepare: --field)"
        )
    return candidates[0]


def _is_text(value: str) -> bool:
    """Whether a value of a CSV is no number."""
    try:
        float(value)
    except ValueError:
        return True
    return False


def _lines(name: str, file: IO[bytes]) -> Iterator[str]:
    """The lines of a UTF-8 file, without a byte-order mark."""
    offset, is_first = 0, True
    while raw := file.readline(MOST_LINE + 1):
        if len(raw) > MOST_LINE:
            raise UserError(f"{name} has a line of more than {MOST_LINE >> 20} MiB; cut it")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            is_first = is_first and raw[: error.start].isascii()
            place = raw[error.start], offset + error.start
            raise UserError(file_kinds.not_utf8(name, *place, is_first)) from None
        yield line if offset else line.removeprefix("\ufeff")
        is_first = is_first and raw.isascii()
        offset += len(raw)


def json_lines(name: str, file: IO[bytes], field: str) -> Iterator[Row]:
    """The objects of a file with one JSON object a line."""
    for number, line in enumerate(_lines(name, file), 1):
        if line.strip():
            fix = 'a line is an object such as {"text": "WORDS"}'
            yield json_files.parse(line, Row, f"{name}, line {number}", fix)


def csv_rows(name: str, file: IO[bytes], field: str) -> Iterator[Row]:
    """The rows of a file whose first line names the fields, separated by comma, ; or TAB."""
    csv.field_size_limit(MOST_LINE)
    lines = _lines(name, file)
    header = next(lines, "")
    separator = max(",;\t", key=header.count)
    fields = next(csv.reader([header], delimiter=separator), [])
    reader = csv.DictReader(lines, fields, delimiter=separator, restval=None)
    try:
        for row in reader:
            if None in row:
                raise UserError(
                    f"{name}, line {reader.line_num + 1}: more fields than the {len(fields)} that "
                    f'the first line names; put quotes (") around texts that have a {separator!r}'
                )
            yield row
    except csv.Error as error:
        line = f"{name}, line {reader.line_num + 1}"
        raise UserError(f"{line} is no CSV ({error}); export it again") from None


def parquet_rows(name: str, file: IO[bytes], field: str) -> Iterator[Row]:
    """The rows of a Parquet file, with the field of the text alone."""
    arrow = import_extra("pyarrow", f"{name} needs")
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(file)
        # A value as it may be, in place of the type.
        kinds = {part.name: "a" if "string" in str(part.type) else 0 for part in table.schema_arrow}
        column = find_field(name, kinds, field)
        for batch in table.iter_batches(N_ROWS, columns=[column]):
            yield from batch.to_pylist()
    except (arrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} is no intact Parquet file ({reason}); copy it again") from None


def is_saved(folder: Path) -> bool:
    """Whether save_to_disk of `datasets` made this folder, of one split or of several."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def is_dataset(folder: Path) -> bool:
    """Whether this is a Hugging Face dataset: saved by `datasets`, or a copy from the hub."""
    if is_saved(folder):
        return True
    try:
        with open(folder / CARD, encoding="utf-8", errors="replace") as file:
            start = file.read(1 << 16)
    except OSError:
        return False
    head = start.split("\n---", 1)[0]
    return start.startswith("---\n") and any(f"\n{key}" in head for key in CARD_KEYS)


def open_dataset(folder: Path) -> tuple[str, Any]:
    """The split train of a Hugging Face dataset, or its first or only one, and that one's name.

    Files are found by their names. The README.md of a copy from the hub could name addresses.
    """
    datasets = import_extra("datasets", f"{folder} is a Hugging Face dataset, which needs")
    datasets.disable_progress_bars()
    with _naming(folder):
        if is_saved(folder):
            found = datasets.load_from_disk(str(folder.absolute()))
        else:
            place = str(folder.absolute())
            files = importlib.import_module("datasets.data_files").get_data_patterns(place)
            found = datasets.load_dataset(place, data_files=files, streaming=True)
        if not isinstance(found, dict):
            return str(found.split or ""), found
        split = "train" if "train" in found else next(iter(found))
        return str(split), found[split]


def dataset_rows(name: str, dataset: Any, field: str) -> Iterator[Row]:
    """The rows of a data set of the package datasets, with the field of the text alone."""
    with _naming(name):
        first = next(iter(dataset), None)
        if first is not None:
            column = find_field(name, first, field)
            for batch in dataset.select_columns([column]).iter(N_ROWS):
                yield from ({column: value} for value in batch[column])


@contextmanager
def _naming(folder: Path | str) -> Iterator[None]:
    """Makes every error of the package datasets a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the package and its many readers each raise their own kinds
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(
            f"{folder}: the package datasets cannot read it ({reason}); name one of its files"
        ) from None
