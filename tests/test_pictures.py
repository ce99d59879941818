"""Pictures: labels stay apart and inside, any run plots or is named, letters of any script."""

import json
import math
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from gptjax import drawing
from gptjax.commands import plot
from gptjax.decoding import attention_maps
from gptjax.runs import plots

NAMES = ["gpt_cpu", "a" * 200, "$x_{2}$", "_hidden", "x^2", "\u6a21\u578b", "a\nb", "\udcff", ""]


def write_run(folder: Path, tokenizer: dict | None = None, **facts: float) -> Path:
    """A run directory with two losses, ln(2) and 2 ln(2)."""
    folder.mkdir()
    losses = [{"step": i, "seconds": i, "val_loss": math.log(2) * (2 - i)} for i in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in losses))
    if tokenizer:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        data = {"source": "x", "sha256": "y", **facts}
        (folder / "environment.json").write_text(json.dumps({"data": data}))
    return folder


# --- labels at the ends of curves


@settings(deadline=None)  # imports scipy.optimize
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(0.1, 10))
def test_spread_heights_keep_their_order_and_distance(wanted: list[float], spacing: float) -> None:
    bottom, top = -100.0, -100 + 1.001 * spacing * len(wanted) + 20
    heights = drawing.spread(np.array(wanted), spacing, bottom, top)
    in_order = heights[np.argsort(wanted, kind="stable")]
    assert (np.diff(in_order) > 0.999 * spacing).all()
    assert in_order[0] > bottom + 0.499 * spacing
    assert in_order[-1] < top - 0.499 * spacing


def test_heights_that_are_far_apart_stay_where_they_are() -> None:
    wanted = np.array([70.0, 10.0, 40.0])
    np.testing.assert_allclose(drawing.spread(wanted, 12, 0, 100), wanted)


@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(1, 3)), min_size=1, max_size=12),
    st.sampled_from(["linear", "log"]),
    st.randoms(use_true_random=False),
)
def test_names_neither_overlap_nor_leave_the_axes(ends, scale, random) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-5, 105), ylim=(1.2, 2.8), yscale=scale)  # some ends are outside
    names = [f"{random.choice(NAMES)} {i}" for i in range(len(ends))]
    drawing.label_ends(axes, ends, names, ["black"] * len(ends))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(ends)
    for i, box in enumerate(boxes):
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0
        assert box.y1 <= axes.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert box.x0 > axes.transData.transform((max(x for x, _ in ends), 0.1))[0]


# --- runs of all kinds


def test_runs_without_losses_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_run(tmp_path / "good")
    imported, unfinished = tmp_path / "imported", write_run(tmp_path / "unfinished")
    imported.mkdir()
    (imported / "config.json").write_text("{}")
    (unfinished / "metrics.jsonl").write_text('{"step": 0, "seconds": 1, "val_loss": 3}\n{"st')
    (tmp_path / "empty").mkdir()
    runs = [str(tmp_path / name) for name in ("good", "imported", "unfinished", "empty")]
    plot.main([*runs, "--out", str(tmp_path / "x.svg")])
    err = capsys.readouterr().err
    assert [line.partition(" is left out")[0] for line in err.splitlines()] == runs[1::2]
    shown = re.findall("<!-- (.*?) -->", (tmp_path / "x.svg").read_text())
    assert {"good  0.6931", "unfinished  3.0000", "loss (nats per token)"} <= set(shown)
    plot.main([str(unfinished), "--out", str(tmp_path / "y.png")])
    with pytest.raises(SystemExit):
        plot.main([runs[1], "--out", str(tmp_path / "z.png")])
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "z.png").exists()
    assert good.is_dir()


def test_different_tokenizers_are_compared_in_bits_per_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a", {"type": "char", "characters": "ab"})
    b = write_run(tmp_path / "b", {"type": "bpe", "model": "x"}, bytes_per_token=4.0)
    c = write_run(tmp_path / "c", {"type": "pair"})
    plot.main([str(a), str(b), str(c), "--out", str(tmp_path / "x.svg")])
    assert f"{c} is left out: its tokenizer is another" in capsys.readouterr().err
    shown = re.findall("<!-- (.*?) -->", (tmp_path / "x.svg").read_text())
    assert {"a  1.0000", "b  0.2500", "loss (bits per byte)"} <= set(shown)


def test_the_start_is_cut_off_and_the_legend_says_so(tmp_path: Path) -> None:
    def texts(losses: list[float]) -> list[str]:
        rows = [
            {"step": i, "seconds": 2 * i, "train_loss": loss, "learning_rate": 0.1}
            for i, loss in enumerate(losses)
        ]
        rows.append({"step": len(losses) // 2, "seconds": 60, "val_loss": 1.5})
        plots.plot({"a": rows}, tmp_path / "x.svg")
        return re.findall("<!-- (.*?) -->", (tmp_path / "x.svg").read_text())

    above = "The first losses are above the picture."
    steep = texts([100.0, 50.0, *np.linspace(2, 1, 50)])
    assert above in steep
    assert "best validation loss: 1.5000 (step 26, 60 seconds)" in steep
    assert {"learning", "rate", "seconds", "step"} <= set(steep)
    assert above not in texts([2 - i / 50 for i in range(50)])
    huge = texts([math.exp(10 - i / 10) for i in range(200)])
    assert {"0.0001", "0.01", "1"} <= set(huge)  # a logarithmic axis


# --- letters


def test_letters_of_any_script_are_drawn_or_escaped(tmp_path: Path) -> None:
    """Warnings are errors here, and matplotlib warns of a letter that its fonts lack."""
    tokens = ["\u1200", "\u0e17", "\u05e9", "\u6a21", "\U000e0fff", "$", "_", "^", "\n", "\x00"]
    (shown, *others), fonts = drawing.lettering(["".join(tokens), "abc", "\u6a21"])
    assert shown.isprintable()
    assert shown.endswith("$_^\\n\\x00")
    assert others[0] == "abc"
    assert others[1] in ("\u6a21", "\\u6a21")
    assert fonts["fontfamily"][0] == "DejaVu Sans"
    weights = np.tril(np.ones((1, 2, len(tokens), len(tokens)), np.float32))
    attention_maps.draw_heads(weights, tokens, tmp_path / "heads.png")
    attention_maps.draw(weights[0, 0], tokens, tokens, "title", tmp_path / "map.png")
    plots.plot({name: [] for name in tokens[:2]}, tmp_path / "empty.png")
    image = matplotlib.image.imread(tmp_path / "heads.png")
    assert (np.ptp(image[..., :3], axis=-1) > 0.5).any()  # dark blue


def test_a_font_of_the_machine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was installed since matplotlib last looked."""
    path = drawing.font_manager.findfont("STIXGeneral")
    (point,) = sorted(
        frozenset(FT2Font(path).get_charmap())
        - drawing._code_points(drawing.font_manager.findfont("DejaVu Sans"))
    )[:1]
    monkeypatch.setattr(drawing.font_manager, "findSystemFonts", lambda: ["/nowhere", path])
    families, missing = drawing._fonts(frozenset([point, 0xE0FFF]), "DejaVu Sans")
    assert families == ("DejaVu Sans", "STIXGeneral")
    assert missing == {0xE0FFF}
