"""What all pictures share: colours, letters of any script, and labels that stay apart."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from gptjax.atomic import atomic_file

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Of Okabe and Ito 2008: colour-blind people tell them apart."""
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def lettering(
    texts: Sequence[str], family: str = "DejaVu Sans"
) -> tuple[list[str], dict[str, Any]]:
    """The texts as they can be drawn, and the fonts to draw them with, as options of a text.

    A character that is in no installed font, or is invisible, is drawn as its escape: \\u4e2d.
    """
    characters = {c for text in texts for c in text if c.isprintable()}
    families, missing = _fonts(frozenset(map(ord, characters)), family)
    shown = [
        "".join(
            c if c.isprintable() and ord(c) not in missing else c.encode("unicode_escape").decode()
            for c in text
        )
        for text in texts
    ]
    return shown, {"fontfamily": list(families)}


@functools.lru_cache
def _fonts(points: frozenset[int], family: str) -> tuple[tuple[str, ...], frozenset[int]]:
    """The family and the further ones that these code points need; the points that none has."""
    families = [family]
    missing = points - _code_points(font_manager.findfont(family))
    if missing:  # rare, as this opens every font of the machine
        known = {entry.fname for entry in font_manager.fontManager.ttflist}
        plain_first = sorted(
            font_manager.findSystemFonts(),
            key=lambda path: ("Regular" not in path, "Sans" not in path, path),
        )
        for path in plain_first:
            if not missing:
                break
            found = missing & _code_points(path)
            if not found:
                continue
            if path not in known:  # installed since matplotlib last looked
                font_manager.fontManager.addfont(path)
            families.append(FT2Font(path).family_name)
            missing -= found
    return tuple(families), missing


def _code_points(path: str) -> frozenset[int]:
    """What a font file can draw. Nothing for bitmaps such as coloured emoji, and broken files."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float]], names: Sequence[str], colors: Sequence[str]
) -> None:
    """Writes the names of curves that end at (x, y), each with a line from there.

    The axes become wider on the right to hold the names. Names that would overlap move apart, and
    long ones lose their middle. Call it last: the layout of the figure is settled here.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    shown, fonts = lettering(names)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    box = axes.bbox
    texts = [axes.text(0, 0, name, va="center", parse_math=False, **fonts) for name in shown]
    for text, name in zip(texts, shown, strict=True):
        text.set(fontsize=9, in_layout=False)
        kept = len(name)
        while (share := text.get_window_extent().width / box.width) > 0.4:
            kept = min(kept - 1, int(kept * 0.4 / share) + 1)
            text.set_text(name[: kept // 2] + "\N{HORIZONTAL ELLIPSIS}" + name[-(kept // 2) :])
    spacing = max(text.get_window_extent().height for text in texts) * 1.15
    if spacing * len(texts) > box.height:  # many names, or a tall script
        for text in texts:
            text.set_fontsize(9 * box.height / (spacing * len(texts)))
        spacing = box.height / len(texts)
    width = max(text.get_window_extent().width for text in texts)
    gap = 0.035 * box.width

    left, right = axes.get_xlim()
    axes.set_xticks([x for x in axes.get_xticks() if left <= x <= right])
    axes.set_xlim(left, left + (right - left) * box.width / (box.width - width - 1.5 * gap))
    points = axes.transData.transform(np.array(ends))
    heights = spread(points[:, 1], spacing, box.y0, box.y1)
    for text, end, height, color in zip(texts, ends, heights, colors, strict=True):
        place = axes.transData.inverted().transform((box.x1 - width - 0.3 * gap, height))
        text.set_position(tuple(place))
        start = axes.transData.inverted().transform((box.x1 - width - 0.5 * gap, height))
        axes.plot(*zip(end, start, strict=True), color=color, linewidth=0.7, zorder=1)


def spread(wanted: np.ndarray, spacing: float, bottom: float, top: float) -> np.ndarray:
    """Heights near the wanted ones, in the same order, at least `spacing` apart, none half a
    spacing from an edge. The room must be enough."""
    from scipy.optimize import isotonic_regression  # takes long to import

    order = np.argsort(wanted, kind="stable")
    steps = spacing * np.arange(len(wanted))
    free = isotonic_regression(wanted[order] - steps).x  # without the steps they need only ascend
    free = np.clip(free, bottom + spacing / 2, top - spacing / 2 - steps[-1])
    heights = np.empty(len(wanted))
    heights[order] = free + steps
    return heights


def save(figure: Figure, path: Path) -> None:
    """Writes a picture whole or not at all: to another name first."""
    with atomic_file(path) as part:
        figure.savefig(part, format=path.suffix.removeprefix(".") or "png")
