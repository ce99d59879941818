"""SIGTERM and Ctrl-C: remembered until the training loop is ready to save and stop."""

import signal
from collections.abc import Iterable, Iterator
from typing import Any

from gptjax.errors import Interrupted
from gptjax.scale import processes


class StopSignal:
    """Catches SIGTERM and the first Ctrl-C; a second Ctrl-C ends the program at once.

    Use as a context manager around everything that should be saved on such a signal.
    """

    received: int | None = None

    def __enter__(self) -> "StopSignal":
        signals = (signal.SIGTERM, signal.SIGINT)
        self._before = {s: signal.signal(s, self._on_signal) for s in signals}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: Any) -> None:
        self.received = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raises Interrupted if any process received a signal. Collective."""
        (received,) = processes.all_reduce_max(self.received or 0)
        if received:
            raise Interrupted(int(received))

    def check_before_each(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, with a check before each one."""
        for item in items:
            self.check()
            yield item
