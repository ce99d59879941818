"""Files that gptjax reads: regular files only, whole and with a limit, so none can fill memory."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def kind(mode: int) -> str:
    """What it is that is no regular file, in words. mode: st_mode of os.stat."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def check(path: Path, pipe: bool = False) -> None:
    """Raises OSError, with a reason in `strerror`, for what is no regular file.

    These are folders, sockets, devices such as /dev/zero, and names that no file can have. pipe:
    allows one without a name, as of <(...). One with a name may wait for a writer without end.
    """
    try:
        mode = path.stat().st_mode
    except ValueError:  # an embedded NUL byte, or half of a surrogate pair
        raise OSError(errno.EINVAL, "no file can have such a name", str(path)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if pipe and stat.S_ISFIFO(mode):
        if os.path.realpath(path).startswith(("/dev/fd/", "/proc/")):
            return
        raise OSError(errno.EINVAL, "it is a named pipe, not a regular file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {kind(mode)}, not a regular file", str(path))


def read_bytes(path: Path, most_bytes: int, pipe: bool = False) -> bytes:
    """The content of a regular file; with pipe=True also what a pipe delivers.

    Raises OSError as `check` does, and with errno EFBIG for more than most_bytes.
    """
    check(path, pipe)
    with open(path, "rb") as file:
        return read_stream(file, most_bytes)


def read_stream(file: BinaryIO, most_bytes: int) -> bytes:
    """What an open file, such as standard input, has left. Raises OSError with errno EFBIG."""
    content = bytearray()
    # In pieces: for a limit above the size of the file, read() would take that much memory.
    while piece := file.read(1 << 24):
        content += piece
        if len(content) > most_bytes:
            raise OSError(errno.EFBIG, f"it has more than {in_words(most_bytes)}")
    return bytes(content)


def host_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's if less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        try:
            whole = min(whole, int(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return whole


def in_words(n_bytes: float) -> str:
    """A number of bytes for messages: 12.3 GB, 45.6 MB."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
