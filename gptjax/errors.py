"""How a command of gptjax ends after an error: one clear line and an exit code, no traceback."""

import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Bad input. The message is one line that names the value and the fix. Exit code 2."""


class TrainingDiverged(Exception):
    """The loss, its gradient or a parameter is not a finite number. Exit code 1."""


class SaveError(Exception):
    """A checkpoint could not be saved, or not be read back. Exit code 1."""


class Interrupted(Exception):
    """A signal stopped the run, after its state was saved. Exit code 128 + signal."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def import_extra(module: str, needed_by: str) -> Any:
    """Imports an optional package. Raises UserError with the pip command if it is missing.

    needed_by: the start of that message, for example "--wandb needs".
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{needed_by} the package {module}: pip install {module}") from None


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
"""Failures of a disk, which libraries also raise as exceptions of their own."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Never the fault of the input, so the exit code is 1 where they became a UserError, too."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes a failure of the disk in the block an OSError that names the path being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename == f"{path}.part":
            error.filename = str(path)
        raise
    except Exception as error:
        if code := disk_error(error):
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def disk_error(error: BaseException) -> int:
    """The errno of a failure of the disk that the error's message quotes; 0 if there is none."""
    return next((code for code in DISK_ERRORS if os.strerror(code) in str(error)), 0)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns the exceptions above into one line on stderr and their exit code.

    An OSError, such as a full disk, is one line too, and exit code 1.
    """
    # A terminal that cannot show a character shows "?" in its place.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if os.getpid() == 1:  # in a container, where a SIGTERM that has no handler is ignored
        signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(128 + signum))
    try:
        yield
    except (UserError, TrainingDiverged, SaveError) as error:
        # A quoted message of another library may have several lines.
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        cause = error.__context__
        is_full = isinstance(cause, OSError) and cause.errno in FULL
        sys.exit(2 if isinstance(error, UserError) and not is_full else 1)
    except Interrupted as interrupt:
        sys.exit(128 + interrupt.signum)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of the output, for example `head`, has closed it
        sys.stderr.close()
        sys.exit(0)
    except MemoryError as error:
        print(f"error: there is not enough memory; {error}".strip("; "), file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
