"""How a command of gptjax ends when something is wrong: one clear line, no traceback."""

import importlib
import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """Bad input. The message is one line that names the value and the fix. Exit code 2."""


class TrainingDiverged(Exception):
    """The loss or its gradient is no longer a finite number. Exit code 1."""


class Interrupted(Exception):
    """A signal asked the run to stop, and its state is saved. Exit code 128 + signal."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def import_extra(module: str, who_needs: str) -> Any:
    """An optional package, or a UserError that says who needs it and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{who_needs} the package {module}: pip install {module}") from None


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns the exceptions above into a line on stderr and the exit code that they document.

    So it does with what the system refuses while we work, a full disk for one: exit code 1.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter still shows the rest
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        yield
    except (UserError, TrainingDiverged) as error:
        # One line, also where it quotes somebody else's message.
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Interrupted as interrupt:
        sys.exit(128 + interrupt.signum)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        print(f"error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
