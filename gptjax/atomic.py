"""Files and folders that appear whole or not at all.

The content is written under another name, next to its place, and renamed at the end. A process
that is killed earlier leaves the old file, or none.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields the path to write to. The file gets its real name when the block ends.

    An exception in the block removes what was written.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder to write into. It gets its real name when the block ends.

    An exception in the block removes it. Every process has a folder of its own; OSError is raised
    where another one was faster.
    """
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, content: str) -> None:
    """Writes a text file whole or not at all."""
    with atomic_file(path) as part:
        part.write_text(content, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")
