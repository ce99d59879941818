"""Checksums (CRC-32): they find files that are not as they were written.

A JSON file carries its own checksum in the field "crc32". A folder has a list of its files. Both
find damage by a disk or a copy; they do not protect against somebody who changes files on purpose.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from gptjax.errors import UserError

CHUNK_BYTES = 1 << 20


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with its checksum added."""
    return {**content, "crc32": _of_json(content)}


def unseal(content: Any, where: str, fix: str) -> Any:
    """The content of a JSON file without its checksum.

    where, fix: the file and what to do, for messages. Raises UserError if the checksum differs. A
    file without one, as they were written before 2026-11-26, is returned unchecked.
    """
    if not isinstance(content, dict) or not isinstance(content.get("crc32"), str):
        return content
    content = dict(content)
    if content.pop("crc32") != _of_json(content):
        raise UserError(
            f"{where} is damaged or was edited: its checksum differs; {fix} (if you edited it, "
            'delete its entry "crc32")'
        )
    return content


def _of_json(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def list_files(folder: Path) -> dict[str, list[int]]:
    """{path: [bytes, CRC-32]} of every file in a folder and the folders inside it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _size_and_crc(path) for path in paths}


def first_difference(folder: Path, listed: dict[str, list[int]]) -> str:
    """What is wrong with the first file that is not as `list_files` listed it; "" if all are."""
    for name, (size, crc) in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        now = path.stat().st_size
        if now != size:
            return f"{name} has {now:,} bytes instead of {size:,}"
        if _size_and_crc(path)[1] != crc:
            return f"{name} differs from its checksum"
    return ""


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]
