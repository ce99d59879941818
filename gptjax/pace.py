"""How many training steps one call to the device runs."""

import time
from collections.abc import Iterator

from gptjax.scale import devices, processes
from gptjax.setup import Run

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

    def stop(self, n_steps: int) -> None:
        now = time.perf_counter()
        times = (now - self._started) / n_steps, now - self._saved
        self.seconds_per_step, self.seconds_unsaved = processes.all_reduce_max(*times)

    def saved(self) -> None:
        self._saved = time.perf_counter()


def step_ranges(run: Run, pace: Pace) -> Iterator[range]:
    """The steps of each call to the device. None goes past an evaluation."""
    c, step = run.config.train, int(run.state.step)
    while step < c.max_steps:
        n = min(run.steps_per_dispatch, c.eval_interval - step % c.eval_interval)
        n = min(n, c.max_steps - step)
        if devices.on_cpu():  # where a different number of steps compiles nothing new
            n = max(1, min(n, int(DISPATCH_SECONDS / pace.seconds_per_step)))
        yield range(step, step + n)
        step += n
