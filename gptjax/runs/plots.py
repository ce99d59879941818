"""A picture of the losses of runs."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from gptjax.drawing import COLORS, DASHES, MARKERS, label_ends, lettering, save
from gptjax.runs.metrics import Row

START = 0.1
"""The share of the steps that may lie above the picture, so that the rest can be seen."""
MOST_POINTS = 2000


def plot(runs: dict[str, list[Row]], path: Path, unit: str = "nats per token") -> None:
    """Draws the training and validation losses of runs, the best of each, and the learning rates.

    One run is drawn over its steps, with the time on top. Several runs are drawn over their steps
    and, beside that, over time, where their names stand at the ends of the curves.
    """
    several = len(runs) > 1
    rows = [row for rows in runs.values() for row in rows]
    has_rate = any("learning_rate" in row for row in rows)
    size = (10.5, 5.4 + max(0, len(runs) - 15) * 0.22) if several else (8, 5.4)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(
        1 + has_rate,
        1 + several,
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=[4.5, 1][: 1 + has_rate],
    )
    second, time_name = _time_unit(max((row["seconds"] for row in rows), default=0))
    for column, (x, scale, label) in zip(
        grid.T, (("step", 1, "step"), ("seconds", second, time_name)), strict=False
    ):
        for i, run in enumerate(runs.values()):
            _draw(column, run, x, scale, i, several)
        column[-1].set_xlabel(label)
    for axes in grid.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=axes in grid[:, 0]))
    above = _set_range(grid[0, 0], list(runs.values()))
    grid[0, 0].set_ylabel(f"loss ({unit})")
    if has_rate:
        grid[1, 0].set_ylabel("learning\nrate")
        grid[1, 0].set_ylim(bottom=0)
        figure.align_ylabels(grid[:, 0])
    handles, labels = _legend(list(runs.values()), above, second, time_name)
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    else:
        grid[0, 0].text(0.5, 0.5, "no losses yet", ha="center", transform=grid[0, 0].transAxes)
    if several and handles:
        label_ends(grid[0, 1], *_ends(runs, second))
    elif not several:
        _add_time(grid[0, 0], rows, second, time_name)
        (title,), fonts = lettering(list(runs))
        grid[0, 0].set_title(title, loc="left", parse_math=False, **fonts)
    save(figure, path)


def _series(rows: list[Row], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of the rows that have y."""
    pairs = [(row[x], row[y]) for row in rows if y in row]
    return tuple(np.array(pairs, float).reshape(-1, 2).T)  # pyright: ignore[reportReturnType]


def _draw(column: Any, rows: list[Row], x: str, scale: float, i: int, several: bool) -> None:
    """Draws run number i: its losses, and below them its learning rate."""
    color = COLORS[i % len(COLORS)]
    axes: Axes = column[0]
    xs, losses = _series(rows, x, "train_loss")
    thin = slice(None, None, max(1, len(xs) // MOST_POINTS))
    look: dict[str, Any] = {"color": color, "linewidth": 0.8}
    axes.plot(xs[thin] / scale, losses[thin], alpha=0.12 if several else 0.3, **look)
    look = {"color": color, "linewidth": 1 if several else 1.8, "alpha": 0.6 if several else 1}
    axes.plot(xs[thin] / scale, _smooth(losses)[thin], **look)
    xs, losses = _series(rows, x, "val_loss")
    look = {"color": color if several else COLORS[1], "markersize": 5, "linewidth": 1.8}
    look |= {"marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
    axes.plot(xs / scale, losses, **look)
    if len(losses):
        best = losses.argmin()
        look = {"color": "black", "markeredgecolor": "white", "zorder": 5}
        look["markersize"] = 11 if several else 13
        axes.plot(xs[best] / scale, losses[best], "*", **look)
    xs, rates = _series(rows, x, "learning_rate")
    if len(xs):
        column[1].plot(xs / scale, rates, color=color if several else "0.35", linewidth=1.2)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over a twentieth of the curve, centred, narrower near its ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(len(values))
    reach = np.minimum(len(values) // 40, np.minimum(here, here[::-1]))
    return (sums[here + reach + 1] - sums[here - reach]) / (2 * reach + 1)


def _set_range(axes: Axes, runs: list[list[Row]]) -> bool:
    """Sets the axis of losses to the range that matters; returns whether it cuts off a start."""
    late, rough, all_losses = [], [], []
    last_steps = [max((row["step"] for row in rows), default=0) for rows in runs]
    for rows, last_step in zip(runs, last_steps, strict=True):
        from_step = min(START * max(last_steps), last_step / 2)
        for y in ("train_loss", "val_loss"):
            steps, losses = _series(rows, "step", y)
            smooth = _smooth(losses) if y == "train_loss" else losses
            all_losses += [*smooth]
            late += [*smooth[steps >= from_step]]
            rough += [*losses[steps >= from_step]]
    if not late:
        return False
    bottom = min(*all_losses, np.percentile(rough, 1))
    top, highest = max(*late, np.percentile(rough, 99)), max(all_losses)
    above = highest - bottom > 1.5 * (top - bottom)
    top = top if above else highest
    if bottom > 0 and top > 4 * bottom:
        axes.set_yscale("log")
        axes.set_ylim(bottom / (top / bottom) ** 0.06, top * (top / bottom) ** 0.06)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.06 * (top - bottom) or 0.05
        axes.set_ylim(bottom - margin, top + margin)
    return above


def _legend(
    runs: list[list[Row]], above: bool, second: float, time_name: str
) -> tuple[list[Line2D], list[str]]:
    """What each kind of line means; of one run, also its best loss."""
    several = len(runs) > 1
    colors = ("0.3", "0.3") if several else COLORS
    handles, labels = [], []
    if any("train_loss" in row for rows in runs for row in rows):
        handles.append(Line2D([], [], color=colors[0], linewidth=1 if several else 1.8))
        labels.append("training, smoothed (faint: as measured)")
    evaluations = [row for rows in runs for row in rows if "val_loss" in row]
    if evaluations:
        handles.append(Line2D([], [], color=colors[1], marker="o", markersize=5))
        labels.append("validation, whole split")
        handles.append(Line2D([], [], color="black", marker="*", markersize=11, linewidth=0))
        best = min(evaluations, key=lambda row: row["val_loss"])
        when = f"step {best['step']:,}, {best['seconds'] / second:.3g} {time_name}"
        shown = f"{best['val_loss']:.4f} ({when})"
        labels.append("best validation loss" + ("" if several else f": {shown}"))
    if above:
        handles.append(Line2D([], [], linewidth=0))
        labels.append("The first losses are above the picture.")
    return handles, labels


def _ends(
    runs: dict[str, list[Row]], second: float
) -> tuple[list[tuple[float, float]], list[str], list[str]]:
    """Where each curve ends in time, its name with the best loss, and its colour."""
    ends, names, colors = [], [], []
    for i, (name, rows) in enumerate(runs.items()):
        xs, losses = _series(rows, "seconds", "val_loss")
        best = f"  {losses.min():.4f}" if len(xs) else ""
        if not len(xs):
            xs, losses = _series(rows, "seconds", "train_loss")
            losses = _smooth(losses)
        if len(xs):
            ends.append((xs[-1] / second, losses[-1]))
            names.append(name + best)
            colors.append(COLORS[i % len(COLORS)])
    return ends, names, colors


def _time_unit(seconds: float) -> tuple[float, str]:
    """The unit for a time of so many seconds: its length in seconds, and its name."""
    units = (3600, "hours"), (60, "minutes")
    return next((unit for unit in units if seconds > 10 * unit[0]), (1, "seconds"))


def _add_time(axes: Axes, rows: list[Row], second: float, name: str) -> None:
    """An axis on top that says when each step was done."""
    steps = [row["step"] for row in rows]
    times = [row["seconds"] / second for row in rows]
    if not rows or max(times) <= min(times):
        return
    ticks: dict[float, str] = {}
    for time in MaxNLocator(8).tick_values(min(times), max(times)):
        place = float(np.interp(time, times, steps))
        far = not ticks or place - max(ticks) > 0.08 * max(steps)  # a pause has many
        if min(times) <= time <= max(times) and far:
            ticks[place] = f"{time:g}"
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(ticks), list(ticks.values()))
    top.set_xlabel(name)
    top.spines[:].set_visible(False)
