"""How many training steps one call to the device runs."""

import time
from collections.abc import Iterator

from gptjax.config import TrainConfig
from gptjax.scale import devices, processes

# On a CPU one call to the device lasts about this long, so that a signal is noticed soon.
DISPATCH_SECONDS = 1.0


class Pace:
    """Measures the speed of training. All processes get the slowest one's, and decide the same."""

    seconds_per_step = DISPATCH_SECONDS  # until measured: the first dispatch is one step
    seconds_unsaved = 0.0

    def __init__(self) -> None:
        self._started = self._saved = time.perf_counter()

    def start(self) -> None:
        self._started = time.perf_counter()

    def finish(self, n_steps: int) -> None:
        now = time.perf_counter()
        times = (now - self._started) / n_steps, now - self._saved
        self.seconds_per_step, self.seconds_unsaved = processes.all_reduce_max(*times)

    def saved(self) -> None:
        self._saved = time.perf_counter()


def step_ranges(c: TrainConfig, step: int, most_steps: int, pace: Pace) -> Iterator[range]:
    """The steps of each call to the device: `most_steps`, but none past an evaluation."""
    while step < c.max_steps:
        n = min(most_steps, c.eval_interval - step % c.eval_interval)
        n = min(n, c.max_steps - step)
        if devices.on_cpu():  # where a different number of steps compiles nothing new
            n = max(1, min(n, int(DISPATCH_SECONDS / pace.seconds_per_step)))
        yield range(step, step + n)
        step += n


def first_lengths(c: TrainConfig, step: int, most_steps: int) -> list[int]:
    """The numbers of steps of the calls up to the first evaluation, each once.

    On a GPU every number of steps is a program of its own.
    """
    lengths = []
    for steps in step_ranges(c, step, most_steps, Pace()):
        lengths.append(len(steps))
        if steps.stop % c.eval_interval == 0:
            break
    return list(dict.fromkeys(lengths))
