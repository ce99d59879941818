"""Ctrl-C and SIGTERM while a program starts or ends: they end it at once, without a traceback.

Python's own answer to Ctrl-C is an exception wherever the program happens to be. While modules are
imported, that is a traceback of code that is not ours, or it is lost in a callback that drops
exceptions. There is nothing to clean up yet, so the process simply ends.

This file imports nothing slow: every program runs it first. Before that, in the first 50 ms,
Python itself starts, and no program can decide what a signal does.
"""

import os
import signal
import threading
from types import FrameType


def end_at_once() -> None:
    """From now on, SIGINT and SIGTERM end the process with exit code 128 + signal.

    For programs, not for libraries: nothing undoes it. Code that has something to save or to
    remove sets its own handlers. Call it in the main thread.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _end)
    # The main thread runs handlers between two steps of Python. While it is in a library, which
    # may take minutes (to compile, to connect), only another thread can act. The system writes
    # the signal's number into this pipe.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()


def ends_at_once(signum: int) -> bool:
    """Whether `end_at_once` decides what this signal does."""
    return signal.getsignal(signum) is _end


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


def _watch(read: int) -> None:
    while True:
        signum = os.read(read, 1)[0]
        if ends_at_once(signum):
            os._exit(128 + signum)
