"""Makes the next item in the background while the caller uses the current one."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def prefetch(make: Callable[[K], V], keys: Iterable[K]) -> Generator[V]:
    """Yields make(key) for every key, in order, each made in one background thread.

    While the caller uses an item, the next one is made, and no further key is taken. Keys are
    taken in the caller's thread, so they may come from a generator that reads the caller's state.
    An exception of `make` is raised in place of its item. The thread ends with the generator:
    exhaust it or close it (contextlib.closing).
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        current: Future[V] | None = None
        for key in keys:
            upcoming = thread.submit(make, key)
            if current:
                yield current.result()
            current = upcoming
        if current:
            yield current.result()
