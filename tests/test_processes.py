"""Several processes train one run, and a failure of one ends all of them.

They are real processes on the loopback interface. Where devices are the point, each has four
simulated ones and the model is a GPT; elsewhere a bigram on one device is quicker to start.
"""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import forked
import numpy as np
import pytest
from conftest import Printed
from distributed_worker import REPO, WORKER, run
from forked import Python

from gptjax import train
from gptjax.errors import UserError
from gptjax.scale import processes

pytestmark = pytest.mark.slow
TEXT = "To be, or not to be, that is the question:\n" * 60
CONFIG = """
from pathlib import Path
from gptjax.data import dataset as data
from gptjax.config import *

config = Config(
    model={model},
    data=TextDataConfig(path=Path({text!r})),
    optim=OptimConfig(learning_rate=3e-3),  # at 1e-2 rounding alone grows to 1e-4
    train=TrainConfig(max_steps=6, batch_size=16, micro_batch_size=8, eval_interval=6,
        eval_batches=2, log_interval=1, sample_tokens={sample_tokens}),
)
"""
GPT = "GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, dropout=0.2)"
# Runs until something ends it, and evaluates once.
ENDLESS = ("--train.max-steps", 100_000, "--train.eval-interval", 100_000)
IMPATIENT = """
from gptjax.scale import processes

processes.HEARTBEAT_SECONDS, processes.ANSWER_SECONDS = 5, 3  # 12 and 8 are for busy machines
"""
FAILS = """
training_batches = data.training_batches

def fail(dataset, config, steps, *rest):
    if steps.start >= 3:
        raise RuntimeError("it broke")
    return training_batches(dataset, config, steps, *rest)

data.training_batches = fail
"""


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


class Pair:
    """Two processes, with one device each unless it says otherwise, of one command each."""

    all: ClassVar[list["Pair"]] = []

    def __init__(self, folder: Path, *commands: list[object], n_devices: Sequence[int] = (1, 1)):
        self.all.append(self)
        self.metrics = folder / "run/metrics.jsonl"
        self.processes = [
            Python(*command, out=folder / f"process-{i}.txt", n_devices=n)
            for i, (command, n) in enumerate(zip(commands, n_devices, strict=True))
        ]

    @classmethod
    def trains(
        cls, folder: Path, configs: tuple[Path, Path], *flags: object, n_devices: int = 1
    ) -> "Pair":
        common = ["--run-dir", folder / "run", "--coordinator", free_address()]
        common += ["--processes", 2, *flags]
        return cls(
            folder,
            *(
                [REPO / "train.py", "--config", config, *common, "--process", i]
                for i, config in enumerate(configs)
            ),
            n_devices=(n_devices, n_devices),
        )

    def wait(self, seconds: float = 200) -> list[int]:
        """Exit codes of both."""
        end = time.monotonic() + seconds
        return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def printed(self, i: int) -> str:
        return self.processes[i].out.read_text(errors="replace")


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Also where a test fails: what hangs there would slow down all that follow."""
    yield
    for pair in Pair.all:
        pair.kill()
    Pair.all.clear()


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("config")
    (folder / "text.txt").write_text(TEXT)
    files = {}
    for name, model, sample_tokens in (("gpt", GPT, 20), ("bigram", "BigramConfig(16)", 0)):
        files[name] = folder / f"{name}.py"
        fields = {"text": str(folder / "text.txt"), "model": model, "sample_tokens": sample_tokens}
        files[name].write_text(CONFIG.format(**fields))
    return files


@pytest.fixture(scope="module")
def config(configs: dict[str, Path]) -> Path:
    return configs["bigram"]


def losses(run_dir: Path) -> np.ndarray:
    """Every loss of a run, in order."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("train_loss", "val_loss", "val_loss_sampled")
    return np.array([row[name] for row in rows for name in names if name in row])


def test_two_processes_train_as_one_device_does(configs: dict[str, Path], tmp_path: Path) -> None:
    config, one_device = configs["gpt"], tmp_path / "one"
    flags = ["--mesh.fsdp", 2, "--mesh.model", 2]
    pair = Pair.trains(tmp_path, (config, config), *flags, n_devices=4)
    train.main(["--config", str(config), "--run-dir", str(one_device)])
    assert pair.wait() == [0, 0], pair.printed(0) + pair.printed(1)
    assert "2 processes x 4 x cpu as data 2 x fsdp 2 x model 2" in pair.printed(0)
    assert not re.search("step|loss", pair.printed(1))  # only the first one prints
    assert len(losses(one_device)) == 6 + 2 * 2
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one_device), rtol=1e-5)
    text = (one_device / "samples/6.txt").read_text()
    assert (tmp_path / "run/samples/6.txt").read_text() == text


def test_a_signal_to_one_process_stops_both_and_one_device_continues(
    config: Path, tmp_path: Path, printed: Printed
) -> None:
    pair = Pair.trains(tmp_path, (config, config), *ENDLESS)
    wait_for_steps(pair)
    pair.processes[1].send_signal(signal.SIGTERM)
    assert pair.wait() == [143, 143], pair.printed(0) + pair.printed(1)
    (said,) = re.findall(r"SIGTERM: saved step (\d+)", pair.printed(0))
    more = [*ENDLESS[2:], "--train.max-steps", int(said) + 2]
    out = printed(train.main, "--config", config, "--run-dir", tmp_path / "run", *more)
    assert f"continuing at step {said}" in out
    assert (tmp_path / "run/checkpoints" / str(int(said) + 2)).exists()


@pytest.mark.parametrize("what", ["seed", "devices"])
def test_processes_that_differ_are_refused(what: str, config: Path, tmp_path: Path) -> None:
    """In a knob; or where one does not see all its devices."""
    common = [REPO / "train.py", "--config", config, "--run-dir", tmp_path / "run"]
    common += ["--coordinator", free_address(), "--processes", 2]
    seeds = (1, 2) if what == "seed" else (1, 1)
    n_devices = (2, 1) if what == "devices" else (1, 1)
    commands = ([*common, "--process", i, "--seed", seed] for i, seed in enumerate(seeds))
    pair = Pair(tmp_path, *commands, n_devices=n_devices)
    codes = pair.wait()
    printed = pair.printed(0) + pair.printed(1)
    assert 2 in codes, printed
    assert 0 not in codes, printed
    differs = rf"error: process . has {what} .*, process . has .*; start all with the same options"
    assert re.search(differs, printed), printed


def test_a_process_whose_peer_never_comes_says_so(config: Path, tmp_path: Path) -> None:
    flags = ["--config", str(config), "--run-dir", str(tmp_path / "run"), "--process", "1"]
    flags += ["--coordinator", free_address(), "--processes", "2"]
    alone = f"""
from gptjax import train
from gptjax.scale import processes
processes.START_SECONDS = 2
train.main({flags})
"""
    done = forked.run("-c", alone)
    assert done.returncode == 2, done.stderr
    assert "error: the processes do not find each other" in done.stderr.splitlines()[-1]


def wait_for_steps(pair: Pair, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not (pair.metrics.exists() and "train_loss" in pair.metrics.read_text()):
        assert time.monotonic() < end, pair.printed(0)
        assert [p.poll() for p in pair.processes] == [None, None], pair.printed(0)
        time.sleep(0.1)


def test_checkpoints_move_between_layouts(tmp_path: Path) -> None:
    """Between 1 device, 8, 4 x 2, and two processes, in every direction, to the bit."""
    address = free_address()
    pair = Pair(
        tmp_path, *([WORKER, "move", tmp_path, i, address] for i in range(2)), n_devices=(4, 4)
    )
    assert run(WORKER, "move", tmp_path, n_devices=8) == ""
    assert pair.wait() == [0, 0], pair.printed(0) + pair.printed(1)
    assert "->" not in pair.printed(0) + pair.printed(1)


@pytest.mark.parametrize(("how", "victim"), [("SIGKILL", 0), ("SIGSTOP", 1), ("exception", 0)])
def test_when_one_process_fails_the_other_ends_and_names_it(
    how: str, victim: int, config: Path, tmp_path: Path
) -> None:
    """Process 0, which has the coordinator, and process 1, which has not."""
    runs, fails = tmp_path / "runs.py", tmp_path / "fails.py"
    runs.write_text(config.read_text() + IMPATIENT)
    fails.write_text(runs.read_text() + FAILS)
    configs = [runs, runs]
    if how == "exception":
        configs[victim] = fails
    flags = [*ENDLESS, "--train.eval-batches", 0]
    pair = Pair.trains(tmp_path, (configs[0], configs[1]), *flags)
    if how == "exception":
        pair.processes[victim].wait(200)
    else:
        wait_for_steps(pair)
        pair.processes[victim].send_signal(getattr(signal, how))
    code = pair.processes[1 - victim].wait(30)
    pair.kill()
    assert code == 1, pair.printed(1 - victim)[-2000:]
    last = pair.printed(1 - victim).splitlines()[-1]
    assert f"error: process {1 - victim} lost process {victim} of 2" in last
    if how == "exception":
        assert pair.processes[victim].returncode == 1
        assert "RuntimeError: it broke" in pair.printed(victim)


class _Store:
    """The key-value store of two processes; process 1 has a newer gptjax."""

    def __init__(self, theirs: dict[str, str]):
        self.values = {"gptjax/run/1": json.dumps(theirs)}

    def key_value_set(self, key: str, value: str) -> None:
        self.values[key] = value

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        return self.values[key]


def test_processes_of_different_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that only one of them has."""
    for theirs in ({"seed": "0"}, {"seed": "0", "old": "1", "new": "2"}):
        monkeypatch.setattr(processes.distributed.global_state, "client", _Store(theirs))
        monkeypatch.setattr(processes.distributed.global_state, "num_processes", 2)
        with pytest.raises(UserError, match=r"process 1 has (old|new)"):
            processes.check_same("run", {"seed": 0, "old": 1})
