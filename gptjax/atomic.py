"""Files and folders that appear whole or not at all.

The content is written under another name, next to its place, and renamed at the end. A process
that is killed earlier leaves the old file, or none.
"""

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

from gptjax.errors import Interrupted, UserError, naming


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields the path to write to. The file gets its real name when the block ends.

    An exception in the block removes what was written. A full disk is an OSError that names
    `path`. A symbolic link is replaced, never followed: the file that it points to is left alone.
    """
    part = path.with_name(path.name + ".part")
    with naming(path):
        part.unlink(missing_ok=True)  # of a process that was killed, or a link
        part.open("x").close()
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def require_writable(option: str, path: Path) -> None:
    """Raises UserError if no file can be made at `path`. Call it before a file takes long to make.

    A file that is there may be replaced. option: the one that named the path.
    """
    try:
        problem = "it is a folder" if path.is_dir() else ""
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        problem = str(error.strerror)
        if not path.parent.exists():
            problem = f"there is no folder {path.parent}"
    if problem:
        raise UserError(f"{option} {path} cannot be written ({problem}); name another place")


@contextlib.contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """In the block, SIGTERM raises Interrupted, so that what was begun is removed.

    Elsewhere than in the main thread, where Python cannot change handlers, it changes nothing.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder to write into. It gets its real name when the block ends.

    An exception in the block, Ctrl-C or SIGTERM removes it. Every process has a folder of its own;
    OSError is raised where another one was faster.
    """
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    with sigterm_as_exception(), naming(folder):
        try:
            part.mkdir(parents=True)
            yield part
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with atomic_file(path) as part:
        part.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes a text file whole or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def open_here(path: Path, mode: str, **options: Any) -> IO[Any]:
    """open(), except that a symbolic link at `path` is refused with an OSError."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    return open(path, mode, opener=opener, **options)
