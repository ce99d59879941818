"""What a run leaves to look at: metrics.jsonl, loss.png, plain lines, TensorBoard, W&B."""

import dataclasses
import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from gptjax.commands import plot
from gptjax.config import Config, GPTConfig, TrainConfig
from gptjax.drawing import lettering
from gptjax.runs import plots, progress, report
from gptjax.runs.report import NullReporter, Reporter, Row, read_metrics

pytestmark = pytest.mark.usefixtures("drawn")
REPO = Path(__file__).parents[1]
CONFIG = Config(model=GPTConfig(block_size=16), train=TrainConfig(max_steps=20, batch_size=4))
TOKENS_PER_STEP = 4 * 16
TRAINING_KEYS = ["step", "seconds", "train_loss", "learning_rate", "grad_norm", "tokens_per_second"]


class Clock:
    """time.perf_counter, at the test's pace."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(report, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(plots, "plot", lambda *_: None)  # pictures have tests of their own
    return clock


def with_train(**fields: Any) -> Config:
    """CONFIG with other fields of its train section."""
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **fields))


def strict_rows(folder: Path) -> list[Row]:
    """metrics.jsonl as any JSON reader sees it: each line whole, no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    rows = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert all(len(row.pop("crc32")) == 8 for row in rows)
    return rows


def write_run(folder: Path, offset: float = 0.0) -> Path:
    """A finished run, as far as its curves go."""
    folder.mkdir()
    rows = [{"step": step, "train_loss": 3.0 - step / 20 + offset} for step in range(1, 21)]
    rows += [{"step": step, "val_loss": 3.1 - step / 20 + offset} for step in range(0, 25, 5)]
    lines = [json.dumps(row | {"seconds": row["step"]}) + "\n" for row in rows]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


# --- metrics.jsonl


def test_the_keys_of_a_row(tmp_path: Path, clock: Clock) -> None:
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        clock.now += 1.25
        reporter.training(3, 2.5, 0.5, 1e-3)
        reporter.evaluation(5, {"val_loss": 2.25, "val_loss_sampled": 2.75})
    row, evaluation = strict_rows(tmp_path)
    assert list(row) == TRAINING_KEYS
    assert row == {
        "step": 3,
        "seconds": 1.25,
        "train_loss": 2.5,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 0,
    }
    assert evaluation == {"step": 5, "seconds": 1.25, "val_loss": 2.25, "val_loss_sampled": 2.75}


def test_a_row_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    """A killed process must not take what it logged with it."""
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        reporter.training(1, 2.5, 0.5, 1e-3)
        assert [row["step"] for row in strict_rows(tmp_path)] == [1]


def test_speed_leaves_out_compiling_and_evaluations(tmp_path: Path, clock: Clock) -> None:
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        reporter.evaluation(0, {"val_loss": 3.0})
        clock.now += 30  # compiles
        reporter.steps_done(1)
        clock.now += 2
        reporter.steps_done(5)
        reporter.training(5, 2.5, 0.5, 1e-3)
        clock.now += 60
        reporter.evaluation(5, {"val_loss": 2.9})
        clock.now += 1
        reporter.steps_done(10)
        reporter.training(10, 2.5, 0.5, 1e-3)
    speeds = [r["tokens_per_second"] for r in strict_rows(tmp_path) if "train_loss" in r]
    assert speeds == [4 * TOKENS_PER_STEP / 2, 5 * TOKENS_PER_STEP / 1]

    with Reporter(tmp_path, CONFIG, 10, TOKENS_PER_STEP) as reporter:
        reporter.evaluation(10, {"val_loss": 2.9})  # which a signal had cut short
        clock.now += 30  # compiles
        reporter.steps_done(11)
        reporter.training(11, 2.5, 0.5, 1e-3)
        clock.now += 1
        reporter.steps_done(13)
        reporter.training(13, 2.5, 0.5, 1e-3)
    speeds = [r["tokens_per_second"] for r in strict_rows(tmp_path) if r["step"] > 10]
    assert speeds == [0, 2 * TOKENS_PER_STEP]


def test_a_resumed_run_is_cut_back_to_its_checkpoint(tmp_path: Path, clock: Clock) -> None:
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        for step in range(1, 10):
            clock.now += 1
            reporter.training(step, 3.0, 0.5, 1e-3)
            if step % 5 == 0:
                reporter.evaluation(step, {"val_loss": 2.0})
    clock.now += 1000  # not training
    with Reporter(tmp_path, CONFIG, 5, TOKENS_PER_STEP) as reporter:
        assert [row["step"] for row in strict_rows(tmp_path)] == [1, 2, 3, 4, 5, 5]
        clock.now += 1
        reporter.training(6, 1.0, 0.5, 1e-3)
    rows = strict_rows(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5, 6]
    assert rows[-1]["train_loss"] == 1.0
    assert rows[-1]["seconds"] == 6.0


def test_a_run_that_starts_afresh_forgets_what_a_killed_one_logged(tmp_path: Path) -> None:
    """Its evaluation of step 0, too, is about to be made again."""
    for _ in range(2):
        with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
            reporter.evaluation(0, {"val_loss": 3.0})
            reporter.training(1, 3.0, 0.5, 1e-3)
    assert [row["step"] for row in strict_rows(tmp_path)] == [0, 1]


def test_a_run_that_lost_its_checkpoints_says_that_it_starts_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for _ in range(2):
        with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
            said.append(capsys.readouterr().out)
            reporter.training(7, 3.0, 0.5, 1e-3)
    again = f"warning: {tmp_path} has no checkpoint of its 7 steps: it starts again\n"
    assert said == ["", again]


@pytest.mark.parametrize("half", ['{"step": 8, "tra', '{"step": 8', "{", '{"step": 8, "t": 0.'])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, half: str) -> None:
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        for step in (6, 7):
            reporter.training(step, 3.0, 0.5, 1e-3)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(half)
    assert [row["step"] for row in read_metrics(tmp_path)] == [6, 7]
    with Reporter(tmp_path, CONFIG, 10, TOKENS_PER_STEP) as reporter:
        reporter.training(11, 3.0, 0.5, 1e-3)
    assert [row["step"] for row in strict_rows(tmp_path)] == [6, 7, 11]


def test_a_folder_without_metrics_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


# --- pictures


def pixels(path: Path) -> np.ndarray:
    """A PNG's pixels (height, width, channels), decoded."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return matplotlib.image.imread(path, format="png")


def test_loss_png_is_a_picture_of_the_curves(tmp_path: Path) -> None:
    """An evaluation draws all rows so far: other rows, another picture."""
    pictures = []
    for offset in (0.0, 0.5):
        run = write_run(tmp_path / f"{offset}", offset)
        with Reporter(run, CONFIG, 20, TOKENS_PER_STEP) as reporter:
            reporter.evaluation(21, {"val_loss": 2.0})
        pictures.append(pixels(run / "loss.png"))
    one, other = pictures
    assert one.shape[0] > 300
    assert one.shape[1] > 500
    assert len(np.unique(one.reshape(-1, one.shape[-1]), axis=0)) > 20
    assert one.shape != other.shape or not np.array_equal(one, other)
    assert not list(tmp_path.glob("**/*.part"))


def test_a_picture_without_any_training_row(tmp_path: Path) -> None:
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        reporter.evaluation(0, {"val_loss": 3.0})  # one point is no curve
        assert not (tmp_path / "loss.png").exists()
        reporter.evaluation(2, {"val_loss": 2.0})
    pixels(tmp_path / "loss.png")
    plots.plot({"empty": []}, tmp_path / "empty.png")
    pixels(tmp_path / "empty.png")


def test_plot_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", offset=0.5)
    plot.main([str(a), str(b), "--out", str(tmp_path / "x.png")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.png")
    plots.plot({str(a): read_metrics(a)}, tmp_path / "one.png")
    assert not np.array_equal(pixels(tmp_path / "x.png"), pixels(tmp_path / "one.png"))


def test_curves_carry_the_names_of_their_runs(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", offset=0.5)
    plot.main([str(a), str(b), "--out", str(tmp_path / "x.svg")])
    svg = (tmp_path / "x.svg").read_text()  # matplotlib repeats each text in a comment
    assert "<!-- a  2.1000 -->" in svg  # with the best validation loss
    assert "<!-- b  2.6000 -->" in svg


NAMES = ["a$x$", "$", "_hidden", "x^2", "$\\frac{", "{}%#&~", "a\nb"]
NAMES += ["\udcff", "a_b_{c", "__", "a\x1b[0m", "\u6a21\u578b"]


def test_a_run_may_have_any_name(tmp_path: Path) -> None:
    """In the legend of several runs, and above the curves of one."""
    rows = read_metrics(write_run(tmp_path / "a"))
    plots.plot(dict.fromkeys(NAMES, rows), tmp_path / "x.svg")
    svg = (tmp_path / "x.svg").read_text()
    for name in NAMES:
        shown = lettering([name])[0][0]
        assert shown.isprintable()
        shown = shown.replace("&", "&amp;").replace("-", "")
        assert f"<!-- {shown}  2.1000 -->" in svg, name
        plots.plot({name: rows}, tmp_path / "one.svg")
        assert f"<!-- {shown} -->" in (tmp_path / "one.svg").read_text()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "at least one run directory"),
        (["RUN", "--out", "x.bmp"], "must end in .png, .svg or .pdf"),
        (["RUN", "NONE"], "NONE is no folder; name a run directory"),
        (["FILE"], "FILE is no folder; name a run directory"),
        (["RUN", "--out", "FILE/x.png"], "--out FILE/x.png cannot be written"),
    ],
)
def test_bad_plots_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "file").touch()
    places = {"RUN": tmp_path / "run", "FILE": tmp_path / "file", "NONE": tmp_path / "none"}

    def resolve(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, str(path))
        return text

    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        plot.main([resolve(argument) for argument in argv])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert resolve(words) in line


# --- the console


def test_plain_lines_when_no_one_watches(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Each line can be found by grep: no colours, no cursor movements, no wrapping, no markup."""
    monkeypatch.setenv("COLUMNS", "40")
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        reporter.say("data [bold]x[/bold] " + "long " * 30 + "end")
        clock.now += 1
        reporter.steps_done(1)
        clock.now += 1
        reporter.steps_done(5)
        reporter.training(5, 2.5, 0.5, 1e-3)
        reporter.evaluation(5, {"val_loss": 2.25, "val_loss_sampled": 2.75})
    said, line = capsys.readouterr().out.splitlines()
    assert said == "data [bold]x[/bold] " + "long " * 30 + "end"
    assert re.fullmatch(
        r"step 5/20  train_loss 2\.5000  val_loss 2\.2500  lr 1\.0e-03  250\.0 ms/step  "
        r"256 tokens/s  eta 0:03",
        line,
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_step_loss_and_time_left_fit_any_terminal(
    tmp_path: Path,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    config = with_train(max_steps=4000)
    with Reporter(tmp_path, config, 0, TOKENS_PER_STEP) as reporter:
        for step in (1000, 1500):
            clock.now += 1
            reporter.steps_done(step)
        reporter.training(1500, 2.5, 0.5, 1e-3)
        clock.now += 1
        reporter.evaluation(1500, {"val_loss": 2.25})
        clock.now += 1
        reporter.steps_done(2000)
        capsys.readouterr()
        reporter.say("a line")
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out).splitlines()
    (shown,) = {line for line in lines if "step 2000" in line}
    assert len(shown.rstrip()) <= width
    assert "loss 2.5000" in shown
    assert shown.rstrip().endswith("eta 0:08")  # 4 s of steps, 4 evaluations of 1 s
    assert "val_loss" not in shown  # of step 1500
    assert ("tokens/s" in shown) == (width >= 80)
    assert ("lr" in shown) == (width >= 100)
    assert ("━" in shown) == (width >= 80)


def test_plain_lines_come_every_few_seconds_only(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        for step in range(1, 21):
            clock.now += report.PLAIN_LINE_SECONDS / 4.5
            reporter.steps_done(step)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["5/20", "10/20", "15/20", "20/20"]


def test_a_terminal_gets_a_progress_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's word for "take it for a terminal"
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        reporter.steps_done(1)
        reporter.steps_done(10)
        reporter.training(10, 2.5, 0.5, 1e-3)
        reporter.steps_done(11)
    shown = capsys.readouterr().out
    assert "\x1b[" in shown
    assert "step 11/20" in shown
    assert "━" in shown
    assert [row["step"] for row in strict_rows(tmp_path)] == [10]


# --- trackers


def events(path: Path) -> Iterator[Any]:
    """The events of a TensorBoard file: records of length, its CRC, data, its CRC."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    raw = path.read_bytes()
    while raw:
        (length,) = struct.unpack_from("<Q", raw)
        yield event_pb2.Event.FromString(raw[12 : 12 + length])
        raw = raw[12 + length + 4 :]


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra gptjax[tensorboard] is not installed")
    with Reporter(tmp_path, with_train(), 0, TOKENS_PER_STEP, ("tensorboard",)) as reporter:
        reporter.training(3, 2.5, 0.5, 0.125)
        reporter.evaluation(5, {"val_loss": 2.25})
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    written = {
        (event.step, value.tag): value.simple_value
        for event in events(path)
        for value in event.summary.value
    }
    assert written == {
        (3, "train_loss"): 2.5,
        (3, "grad_norm"): 0.5,
        (3, "learning_rate"): 0.125,
        (3, "tokens_per_second"): 0.0,
        (5, "val_loss"): 2.25,
    }


def test_no_tracker_without_being_asked(tmp_path: Path) -> None:
    with Reporter(tmp_path, CONFIG, 0, TOKENS_PER_STEP) as reporter:
        reporter.evaluation(5, {"val_loss": 2.25})
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "metrics.jsonl"}


def test_wandb_gets_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    run = SimpleNamespace(
        log=lambda fields, step: logged.append((step, fields)),
        finish=lambda: logged.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: run))
    with Reporter(tmp_path, with_train(), 0, TOKENS_PER_STEP, ("wandb",)) as reporter:
        reporter.evaluation(5, {"val_loss": 2.25})
    (step, fields), finished = logged
    assert (step, fields["val_loss"], finished) == (5, 2.25, "finished")


@pytest.mark.parametrize("step", [0, 7, 10**12])
def test_only_the_first_of_several_processes_knows_that_an_evaluation_is_due(step: int) -> None:
    """One that asked for it made all of them repeat evaluations when a run continued."""
    assert step in NullReporter().evaluated
