"""How far a run is, in one line that fits a terminal of any width, and in a notebook."""

import html
import time
from typing import Any

from gptjax.config import TrainConfig

# Columns of the progress bar.
LEAST_BAR, MOST_BAR = 6, 24
# Seconds between two pictures of the bar in a notebook.
NOTEBOOK_SECONDS = 0.25


class Speed:
    """Measures training and evaluations, to say how much time is left."""

    def __init__(self, c: TrainConfig, tokens_per_step: float):
        self._config, self._tokens_per_step = c, tokens_per_step
        self._times: list[tuple[float, int]] = []
        self._trained = False
        self.seconds_per_step = self._seconds_per_evaluation = 0.0

    def steps_done(self, step: int) -> None:
        """Call it after every dispatch. The first one compiles, so it is left out."""
        self._times = [*self._times[-20:], (time.perf_counter(), step)]
        (t0, s0), (t1, s1) = self._times[0], self._times[-1]
        if s1 > s0:
            self.seconds_per_step, self._trained = (t1 - t0) / (s1 - s0), True

    def evaluated(self, step: int) -> None:
        """Call it after an evaluation. Those before the first steps compile, and do not count."""
        now = time.perf_counter()
        if self._trained:
            self._seconds_per_evaluation = now - self._times[-1][0]
        # The speed is measured from now on, unless the first dispatch is still to come.
        self._times = [(now, step)] if self._times else []

    @property
    def tokens_per_second(self) -> float:
        return self._tokens_per_step / self.seconds_per_step if self.seconds_per_step else 0.0

    def seconds_left(self, step: int) -> float:
        """To the end of the run, evaluations included. 0 until it is measured."""
        c = self._config
        n_evaluations = -(-c.max_steps // c.eval_interval) - step // c.eval_interval
        left = (c.max_steps - step) * self.seconds_per_step
        return left + max(0, n_evaluations) * self._seconds_per_evaluation


def line(row: dict[str, Any], c: TrainConfig, speed: Speed, width: int = 0) -> str:
    """Step, losses, learning rate, speed and time left.

    What is less important is left out where more than `width` columns, if it is not 0, are needed.
    """
    parts = {"step": f"step {row['step']}/{c.max_steps}"}
    for name in ("train_loss", "val_loss"):
        if name in row:
            parts[name] = f"{name} {row[name]:.4f}"
    if "learning_rate" in row:
        parts["lr"] = f"lr {row['learning_rate']:.1e}"
    if speed.seconds_per_step:
        parts["ms"] = f"{1e3 * speed.seconds_per_step:.1f} ms/step"
        parts["tokens"] = f"{speed.tokens_per_second:,.0f} tokens/s"
        left = int(speed.seconds_left(row["step"]))
        parts["eta"] = f"eta {left // 60}:{left % 60:02d}"
    for name in ("lr", "tokens", "ms", "val_loss"):
        if width and len("  ".join(parts.values())) > width:
            parts.pop(name, None)
    if width and len("  ".join(parts.values())) > width:
        parts = {name: part.removeprefix("train_") for name, part in parts.items()}
    return "  ".join(parts.values())


def bar_width(text: str, width: int) -> int:
    """Columns of a bar to the left of a text: 0 where the text needs them."""
    free = width - len(text) - 1
    return min(MOST_BAR, free) if free >= LEAST_BAR else 0


class NotebookBar:
    """A progress bar in Jupyter or Colab. HTML alone, because rich's bar needs ipywidgets there."""

    def __init__(self, total: int, step: int):
        from IPython.display import HTML, display

        self._html, self._total, self._shown = HTML, total, 0.0
        self._display: Any = display(self._page(step, "compiling"), display_id=True)

    def show(self, step: int, text: str, at_once: bool = False) -> None:
        """Moves the bar to a step, and sets the text beside it. Not more often than eyes see."""
        now = time.perf_counter()
        if at_once or now - self._shown > NOTEBOOK_SECONDS:
            self._shown = now
            self._display.update(self._page(step, text))

    def _page(self, step: int, text: str) -> Any:
        bar = f'<progress value="{step}" max="{self._total}"></progress>'
        return self._html(f"{bar} <code>{html.escape(text)}</code>")
