"""Real processes: a run that was stopped in any way ends like one that was not.

Runs that are compared bit for bit use one core: on several, XLA's CPU backend may change the order
of sums from run to run.
"""

import functools
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import forked
import jax
import numpy as np
import pytest
from forked import Python

from gptjax import models, optim, setup, train, training
from gptjax.commands import sample
from gptjax.errors import exit_codes
from gptjax.runs import run_directory
from gptjax.runs.checkpoints import Checkpoints
from gptjax.runs.metrics import read_metrics
from gptjax.runs.report import Reporter
from gptjax.runs.stop_signal import StopSignal
from gptjax.scale.sharding import with_sharding

REPO = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
MAX_STEPS, EVAL_INTERVAL, BLOCK_SIZE = 12, 2, 16
ALPHABET = "abcdefgh \n"
CONFIG = """
from pathlib import Path
from gptjax.config import Config, TextDataConfig, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size={block_size}, dropout=0.2),
    data=TextDataConfig(path=Path({text!r})),
    optim=OptimConfig(learning_rate=1e-2, warmup_steps=10),
    train=TrainConfig(
        max_steps={max_steps}, batch_size=8, micro_batch_size=4,
        eval_interval={eval_interval}, eval_batches=2, log_interval=1, sample_tokens=8,
    ),
)
"""

Losses = list[tuple[int, str, float]]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with dropout and micro-batches, evaluated and saved every other step."""
    folder = tmp_path_factory.mktemp("config")
    text = folder / "text.txt"
    text.write_text(ALPHABET + "".join(random.Random(0).choices(ALPHABET, k=1990)))
    fields = {"max_steps": MAX_STEPS, "eval_interval": EVAL_INTERVAL, "block_size": BLOCK_SIZE}
    (folder / "tiny.py").write_text(CONFIG.format(text=str(text), **fields))
    return folder / "tiny.py"


def one_core() -> int:
    """The core that comparisons run on: another one for each worker of pytest-xdist."""
    cores = sorted(os.sched_getaffinity(0))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return cores[int(worker) % len(cores)]


def command(config_file: Path, run: Path, *flags: object) -> list[object]:
    return [REPO / "train.py", "--config", config_file, "--run-dir", run, *flags]


def run_train(config_file: Path, run: Path, *flags: object, n_devices: int = 1) -> str:
    """Runs train.py to its end; returns what it printed."""
    arguments = command(config_file, run, *flags)
    done = forked.run(*arguments, n_devices=n_devices, core=one_core())
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(condition: Callable[[], bool], process: Python, seconds: float = 120.0) -> None:
    """Returns when the condition holds; fails if the process ends or time runs out first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.out.read_text()
        assert time.monotonic() < deadline, process.out.read_text()
        time.sleep(0.005)


def losses(run: Path, first: int = 0) -> Losses:
    """Every loss in metrics.jsonl, in order: (step, name, value)."""
    return [
        (row["step"], name, value)
        for row in read_metrics(run)
        for name, value in row.items()
        if name.endswith("loss") and row["step"] >= first
    ]


def holds_lock(process: Python, run: Path, beyond: int) -> bool:
    lock = run / "lock"
    return lock.exists() and lock.read_text() == str(process.pid)


def has_trained(process: Python, run: Path, beyond: int) -> bool:
    """Whether this process logged a later step. (Its first line comes after it cut metrics.jsonl
    back, which until then holds what the one before it did.)"""
    return "data: " in process.out.read_text() and any(s > beyond for s, _, _ in losses(run))


def is_saving(process: Python, run: Path, beyond: int) -> bool:
    """Whether there is a checkpoint that is not whole yet."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return has_trained(process, run, beyond) and not all(name.isdecimal() for name in names)


def has_saved(process: Python, run: Path, beyond: int) -> bool:
    return max(committed(run), default=0) > beyond


def committed(run: Path) -> list[int]:
    """Steps of the checkpoints that are whole, by their names alone."""
    return sorted(int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdecimal())


def arrays(run: Path, step: int) -> dict[str, bytes]:
    """Every array of a checkpoint, parameters and optimizer state, as bytes."""
    config = run_directory.read_config(run)
    model = models.build(config.model, run_directory.read_tokenizer(run))
    optimizer = optim.build(config.optim, config.train.max_steps)
    shapes = jax.eval_shape(lambda: training.init_state(models.init(model, 0), optimizer))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    checkpoints = Checkpoints(run / "checkpoints")
    state = checkpoints.restore(step, with_sharding(shapes, device))
    checkpoints.close()
    leaves, _ = jax.tree_util.tree_flatten_with_path((state.params, state.opt_state))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def assert_same_run(run: Path, whole: Path) -> None:
    """The same losses at every step, and the same arrays at the last."""
    assert losses(run) == losses(whole)
    last = committed(whole)[-1]
    assert last == MAX_STEPS
    assert arrays(run, last) == arrays(whole, last)


@pytest.fixture(scope="module")
def whole(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_train(config_file, run)
    return run


@pytest.fixture(scope="module")
def half(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first half of it. Tests continue a copy."""
    run = tmp_path_factory.mktemp("half") / "run"
    run_train(config_file, run, "--train.max-steps", MAX_STEPS // 2)
    return run


# --- stopping and continuing


def test_the_uninterrupted_run_is_complete(whole: Path) -> None:
    """What the tests below compare with."""
    rows = read_metrics(whole)
    assert [r["step"] for r in rows if "train_loss" in r] == list(range(1, MAX_STEPS + 1))
    evaluations = [r for r in rows if "val_loss" in r]
    assert [r["step"] for r in evaluations] == list(range(0, MAX_STEPS + 1, EVAL_INTERVAL))
    assert all("val_loss_sampled" in r for r in evaluations)
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"]
    best = min(evaluations, key=lambda r: r["val_loss"])["step"]
    latest = [MAX_STEPS - EVAL_INTERVAL, MAX_STEPS]
    assert committed(whole) == sorted({*latest, best} - {0})
    names = {path.name for path in whole.iterdir()}
    assert names == {
        *("config.json", "environment.json", "tokenizer.json", "metrics.jsonl", "loss.png"),
        *("samples", "checkpoints", "lock"),
    }
    assert len(list((whole / "samples").iterdir())) == len(evaluations)


def test_resuming_is_bitwise(config_file: Path, half: Path, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(half, tmp_path / "run"))
    printed = run_train(config_file, run, "--resume", "--train.sample-tokens", 0)
    assert f"continuing at step {MAX_STEPS // 2}" in printed
    assert_same_run(run, whole)
    # That could not fail if dropout or batches were not random by step.
    assert arrays(run, MAX_STEPS) != arrays(half, MAX_STEPS // 2)


SIGNAL_WHILE_LOADING = """
import os, signal, sys, time
from gptjax import train
from gptjax.runs.report import Reporter

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's & would ignore
say = Reporter.say

def say_then_signal(reporter, line):
    say(reporter, line)
    if line.startswith("data: "):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(1)
        print("still loading", flush=True)

Reporter.say = say_then_signal
train.main(sys.argv[2:])
"""


def test_a_signal_while_loading_ends_the_run_at_once(config_file: Path, tmp_path: Path) -> None:
    """There is nothing to save yet. A shell shows -15 as 143."""
    run = tmp_path / "run"
    flags = ["--config", str(REPO / "configs/bigram.py"), "--train.max-steps", "2"]
    flags += ["--data.path", str(config_file.with_name("text.txt")), "--run-dir", str(run)]
    flags += ["--train.sample-tokens", "0", "--train.eval-batches", "0"]
    for signum, code in ((signal.SIGTERM, -15), (signal.SIGINT, 130)):
        ended = forked.run("-c", SIGNAL_WHILE_LOADING, int(signum), *flags)
        assert ended.returncode == code
        assert "still loading" not in ended.stdout
        assert "Traceback" not in ended.stderr
        assert committed(run) == []
    train.main(flags)  # nothing is half-written: the same command starts
    assert committed(run)[-1] == 2


def test_the_first_process_of_a_container_ends_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux drops signals to process 1 that have no handler."""
    handlers = {}
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with exit_codes():
        handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert codes == [143]


@pytest.fixture(scope="module")
def straight(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Flags of a bigram, and its run that nothing interrupts."""
    flags = ["--config", str(REPO / "configs/bigram.py"), "--train.max-steps", "6"]
    flags += ["--data.path", str(config_file.with_name("text.txt")), "--train.eval-interval", "2"]
    flags += ["--train.eval-batches", "2", "--train.log-interval", "1"]
    flags += ["--train.sample-tokens", "0"]
    run = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "KEEP_LATEST", 9)
        train.main([*flags, "--run-dir", str(run)])
    return flags, run


@pytest.mark.parametrize("stop_at", [0, 4, 6])
def test_a_signal_when_an_evaluation_is_due(
    straight: tuple[list[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    """Saved before that evaluation, the run makes up for it: at the start, later and at the end."""
    monkeypatch.setattr(setup, "KEEP_LATEST", 9)
    (flags, whole), stopped = straight, tmp_path / "stopped"
    steps_done, begin = Reporter.steps_done, train.train

    def done_then_signal(reporter: Reporter, step: int) -> None:
        steps_done(reporter, step)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def signal_then_begin(run: setup.Run, stop: StopSignal) -> None:
        if stop_at == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        begin(run, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "steps_done", done_then_signal)
        patch.setattr(train, "train", signal_then_begin)
        with pytest.raises(SystemExit) as stop:
            train.main([*flags, "--run-dir", str(stopped)])
    assert stop.value.code == 143
    assert committed(stopped)[-1] == stop_at
    assert [step for step, name, _ in losses(stopped) if name == "val_loss"][stop_at // 2 :] == []
    train.main([*flags, "--run-dir", str(stopped)])

    ours, theirs = losses(stopped), losses(whole)
    assert [loss[:2] for loss in ours] == [loss[:2] for loss in theirs]
    np.testing.assert_allclose([x[2] for x in ours], [x[2] for x in theirs], rtol=1e-6)
    # sample.py takes the best checkpoint, of which each evaluated one must be a candidate.
    best = [Checkpoints(run / "checkpoints").best() for run in (stopped, whole)]
    assert best[0] == best[1]


def test_however_often_it_is_stopped_a_run_ends_like_one_that_was_not(
    config_file: Path, whole: Path, tmp_path: Path
) -> None:
    """Kills at any moment around saving, and signals, which save.

    Each start continues at the last complete checkpoint, to the same end.
    """
    run, at = tmp_path / "run", 0  # at: the last step with a complete checkpoint
    flags = ["--train.sample-tokens", 0]
    stops = (
        (holds_lock, signal.SIGKILL),  # the files that describe the run are being written
        (is_saving, signal.SIGKILL),  # logged; the arrays of the first checkpoint partly on disk
        (is_saving, signal.SIGKILL),
        (has_saved, signal.SIGKILL),  # an old checkpoint is being removed
        (has_trained, signal.SIGTERM),
        (has_trained, signal.SIGINT),
    )
    for moment, signum in stops:
        before = at
        log_file = tmp_path / "log"
        process = Python(*command(config_file, run, *flags), out=log_file, core=one_core())
        try:
            wait_until(functools.partial(moment, process, run, before), process)
            process.send_signal(signum)
            code = -signum if signum == signal.SIGKILL else 128 + signum
            assert process.wait(60) == code
        finally:
            process.kill()
        log = log_file.read_text()
        assert "Traceback" not in log
        if "data: " in log:
            assert ("continuing" in log) == (before > 0), log
            assert f"continuing at step {before}\n" in log or before == 0, log
        at = max(committed(run), default=0)
        if signum != signal.SIGKILL:
            (step,) = map(int, re.findall(rf"{signum.name}: saved step (\d+);", log))
            assert before < step == at < MAX_STEPS
        if at:
            assert arrays(run, at).keys() == arrays(whole, MAX_STEPS).keys()
    assert f"continuing at step {at}\n" in run_train(config_file, run, *flags)
    assert_same_run(run, whole)
    left = [path.name for path in (run / "checkpoints").iterdir() if not path.name.isdecimal()]
    assert left == []  # of saves that were killed


def test_the_second_trainer_of_a_run_is_refused(config_file: Path, half: Path) -> None:
    """This process is the first."""
    before = (half / "metrics.jsonl").read_bytes()
    with run_directory.locked(half):
        done = forked.run(*command(config_file, half))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --run-dir {half} is in use by process {os.getpid()};")
    assert (half / "metrics.jsonl").read_bytes() == before


# --- when numbers end


@pytest.mark.parametrize(
    ("eval_interval", "what"),
    [(1, r"val_loss \S+"), (9, r"loss \S+, gradient norm \S+")],
    ids=["in-an-evaluation", "between-evaluations"],
)
def test_a_loss_that_is_no_number_stops_the_run(
    straight: tuple[list[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    eval_interval: int,
    what: str,
) -> None:
    run = tmp_path / "run"
    flags = ["--optim.learning-rate", "1e38", "--train.eval-interval", str(eval_interval)]
    with pytest.raises(SystemExit) as stop:
        train.main([*straight[0], "--run-dir", str(run), *flags])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: step [1-9]\d*: {what}; ", line)
    assert re.search(r"\b(nan|inf)\b", line)
    assert "--optim.learning-rate" in line
    for step in committed(run):
        for name, raw in arrays(run, step).items():
            dtype = np.int32 if name.endswith("count") else np.float32
            assert np.isfinite(np.frombuffer(raw, dtype)).all()
    text = (run / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


# --- other devices


def assert_close_run(run: Path, whole: Path) -> None:
    """The same losses but for the order of sums."""
    ours = {(step, name): value for step, name, value in losses(run)}
    theirs = {(step, name): value for step, name, value in losses(whole)}
    assert set(ours) <= set(theirs)
    assert len(ours) > MAX_STEPS
    for key, value in ours.items():
        assert value == pytest.approx(theirs[key], rel=1e-4), key


def test_a_checkpoint_continues_on_another_number_of_devices(
    config_file: Path, half: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The batch, its order and its dropout do not depend on the devices that share it.

    The second half on 4, and on 1 again, which is this process.
    """
    flags = ["--train.sample-tokens", "0", "--train.eval-interval", "4"]
    run = Path(shutil.copytree(half, tmp_path / "run"))

    def n_devices() -> int:
        return len(json.loads((run / "environment.json").read_text())["devices"])

    assert n_devices() == 1
    more = [*flags, "--train.max-steps", MAX_STEPS - 4]
    assert f"continuing at step {MAX_STEPS // 2}" in run_train(config_file, run, *more, n_devices=4)
    assert n_devices() == 4
    train.main(["--config", str(config_file), "--run-dir", str(run), *flags])
    assert f"continuing at step {MAX_STEPS - 4}" in capsys.readouterr().out
    assert n_devices() == 1
    assert committed(run)[-1] == MAX_STEPS
    assert_close_run(run, whole)


def test_a_micro_batch_smaller_than_the_number_of_devices(
    config_file: Path, half: Path, tmp_path: Path
) -> None:
    """Each device needs its share of every micro-batch."""
    run = Path(shutil.copytree(half, tmp_path / "run"))
    done = forked.run(*command(config_file, run, "--train.micro-batch-size", 2), n_devices=4)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --train.micro-batch-size is 2, but must be a multiple of the 4")


# --- sampling from the result


def test_json_samples(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--json", "--num-samples", "3", "--prompt", "ab", "--max-new-tokens", "30"]
    capsys.readouterr()
    sample.main([str(half), *flags])
    printed = capsys.readouterr()
    samples = [json.loads(line) for line in printed.out.splitlines()]
    assert [s["sample"] for s in samples] == [0, 1, 2]
    assert {s["prompt"] for s in samples} == {"ab"}
    assert {s["step"] for s in samples} <= set(committed(half))
    assert all(len(s["text"]) == 30 and set(s["text"]) <= set(ALPHABET) for s in samples)
    assert len({s["text"] for s in samples}) == 3
    assert printed.err == ""


def test_a_conversation_through_stdin_has_commands(half: Path) -> None:
    lines = ["abc", "abc", "/seed 7", "abc", "abc", "/seed x", "/temperature hot"]
    lines += ["xyz", "/temperature 0", "abc", "/help", "/quit", "cba"]
    flags = ["--interactive", "--max-new-tokens", 30]
    done = forked.run(REPO / "sample.py", half, *flags, stdin="\n".join(lines))
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"prompt> (abc[^p]*)", done.stdout)
    assert len(answers) == 5
    assert answers[2] == answers[3]  # one seed
    assert len(set(answers[:2])) == 2  # new seeds
    assert len(re.findall(r"^\(seed \d+\)$", done.stderr, flags=re.MULTILINE)) == 2
    assert "seed of every prompt: new" in done.stderr
    assert "error: /temperature is 'hot', but must be a number >= 0" in done.stderr
    assert "/seed VALUE  /temperature VALUE  /help  /quit" in done.stderr
    assert "prompt> cba" not in done.stdout  # nothing is answered after /quit
    assert "prompt> xyz" not in done.stdout
    (unknown,) = (
        x for x in done.stderr.splitlines() if x.startswith("error: ") and "'x' at 0" in x
    )
    assert "'x' at 0, 'y' at 1, 'z' at 2" in unknown


Sampled = Callable[..., str]


@pytest.fixture
def sampled(half: Path, capsys: pytest.CaptureFixture[str]) -> Sampled:
    """Calls sample.py's main in this process, which is faster; returns its standard output."""

    def call(*flags: object) -> str:
        capsys.readouterr()
        sample.main([str(half), "--max-new-tokens", "40", *map(str, flags)])
        return capsys.readouterr().out

    return call


def test_greedy_twice_is_equal_whatever_the_seed(sampled: Sampled) -> None:
    first = sampled("--greedy", "--seed", 1, "--prompt", "ab")
    assert first == sampled("--greedy", "--seed", 2, "--prompt", "ab")
    assert first == sampled("--temperature", 0, "--prompt", "ab")
    assert first == sampled("--top-k", 1, "--prompt", "ab")
    assert first.startswith("ab")
    assert len(first) == 2 + 40 + 1


def test_a_seed_repeats_itself_and_another_differs(sampled: Sampled) -> None:
    assert sampled("--seed", 1) == sampled("--seed", 1) != sampled("--seed", 2)


def test_streaming_shows_the_same_text(sampled: Sampled) -> None:
    assert sampled("--prompt", "ab") == sampled("--prompt", "ab", "--no-stream")


def test_a_prompt_from_a_file(sampled: Sampled, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("abc\nde")
    text = sampled("--prompt-file", tmp_path / "prompt.txt")
    assert text == sampled("--prompt", "abc\nde")
    assert text.startswith("abc\nde")


def test_several_samples_are_numbered(sampled: Sampled) -> None:
    text = sampled("--num-samples", 2, "--prompt", "ab")
    assert text.startswith("--- sample 1 of 2\nab")
    assert "\n--- sample 2 of 2\nab" in text


def test_each_checkpoint_can_be_sampled_from(sampled: Sampled, half: Path) -> None:
    texts = {}
    for step in ("best", "latest", *committed(half)):
        fields = json.loads(sampled("--json", "--greedy", "--step", step))
        texts[step] = fields["step"]
    assert texts["latest"] == committed(half)[-1]
    assert all(texts[step] == step for step in committed(half))
    evaluations = [r for r in read_metrics(half) if "val_loss" in r and r["step"] > 0]
    assert texts["best"] == min(evaluations, key=lambda r: r["val_loss"])["step"]
