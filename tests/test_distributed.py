"""Several devices and several processes compute what one does, and end together.

Devices are simulated, processes real, on the loopback interface; all of them start anew here,
since JAX counts its devices but once.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, VOCAB_SIZE

from gptjax import checkpoint, memory, models, optim, sharding, training
from gptjax.config import Config, GPTConfig, MeshConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError

REPO = Path(__file__).parents[1]
WORKER = REPO / "tests" / "distributed_worker.py"
TEXT = "To be, or not to be, that is the question:\n" * 60
CONFIG = """
from pathlib import Path
from gptjax import data
from gptjax.config import Config, DataConfig, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, dropout=0.2),
    data=DataConfig(path=Path({text!r})),
    optim=OptimConfig(learning_rate=1e-2),
    train=TrainConfig(max_steps=20, batch_size=16, micro_batch_size=8, eval_interval=10,
        eval_batches=2, log_interval=1, sample_tokens=20),
)
"""
FAILS = """
training_batches = data.training_batches

def fail(dataset, config, steps, *rest):
    if steps.start >= 3:
        raise RuntimeError("it broke")
    return training_batches(dataset, config, steps, *rest)

data.training_batches = fail
"""


def environment(n_devices: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}
    flags = "--xla_cpu_collective_call_terminate_timeout_seconds=300"
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(n_devices),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "PYTHONPATH": str(REPO),
        "PYTHONUNBUFFERED": "1",
    }


def run(*command: object, n_devices: int) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment(n_devices),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


class Pair:
    """Two processes with four devices each, both running the same command."""

    all: ClassVar[list["Pair"]] = []

    def __init__(self, folder: Path, *commands: list[object]):
        self.all.append(self)
        self.outputs = [folder / f"process-{i}.txt" for i in range(2)]
        self.processes = []
        for command, output in zip(commands, self.outputs, strict=True):
            line = [sys.executable, *map(str, command)]
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(line, env=environment(4), stdout=file, stderr=file)
                )

    @classmethod
    def trains(cls, folder: Path, configs: tuple[Path, Path], *flags: object) -> "Pair":
        common = ["--run-dir", folder / "run", "--mesh.coordinator", free_address()]
        common += ["--mesh.processes", 2, *flags]
        return cls(
            folder,
            *(
                [REPO / "train.py", "--config", config, *common, "--mesh.process", i]
                for i, config in enumerate(configs)
            ),
        )

    def wait(self, seconds: float = 200) -> list[int]:
        """Exit codes of both."""
        end = time.monotonic() + seconds
        return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def printed(self, i: int) -> str:
        return self.outputs[i].read_text(errors="replace")


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Also where a test fails: what hangs there would slow down all that follow."""
    yield
    for pair in Pair.all:
        pair.kill()
    Pair.all.clear()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "text.txt").write_text(TEXT)
    (folder / "tiny.py").write_text(CONFIG.format(text=str(folder / "text.txt")))
    return folder / "tiny.py"


def losses(run_dir: Path) -> np.ndarray:
    """Every loss of a run, in order."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("train_loss", "val_loss", "val_loss_sampled")
    return np.array([row[name] for row in rows for name in names if name in row])


# --- eight devices compute what one does


@pytest.mark.parametrize("model", ["gpt", "modern", "pairs", "speech"])
def test_no_layout_changes_what_is_computed(model: str) -> None:
    """Gradients to 1e-5 of the largest number of each array, losses of twenty small steps."""
    found = json.loads(run(WORKER, "layouts", model, n_devices=8))
    assert set(found) >= {"2x2x2", "1x4x2"}
    assert model != "gpt" or set(found) == {"8x1x1", "1x8x1", "2x2x2", "4x1x2", "1x4x2"}
    for layout, of in found.items():
        assert of["parameters_differ"] == [], layout
        assert of["masks_differ"] == 0, layout
        assert of["gradient"] <= 1e-5, (layout, of["gradient_of"])
        assert of["losses"] <= 1e-5, layout
        assert of["val_loss"] <= 1e-5, layout
        assert of["share_x_parts"] <= 1.05, layout


def test_exactly_one_rule_fits_every_array() -> None:
    mesh = sharding.make_mesh(Config(TINY, mesh=MeshConfig(data=1)))
    for config in (TINY, GPTConfig(**vars(TINY) | {"activation": "swiglu", "short_conv": 3})):
        model = models.GPT(config, VOCAB_SIZE)
        for name in ("adamw", "muon"):
            optimizer = optim.build(OptimConfig(name=name, grad_clip=1.0), 10)
            state = jax.eval_shape(
                lambda m=model, o=optimizer: training.init_state(models.init(m, 0), o)
            )
            sharding.shardings(state, mesh)  # raises where none fits, or several
    for path in ("block_0.mlp.unheard_of", "block_0.kernel"):
        with pytest.raises(ValueError, match=f"0 sharding rules fit {path}"):
            sharding.partition_spec(path, (4, 4), mesh)


def test_axes_that_do_not_divide_move_on() -> None:
    class Mesh:  # what partition_spec asks of one
        def __init__(self, data: int, fsdp: int, model: int):
            self.shape = {"data": data, "fsdp": fsdp, "model": model}

    def spec(path: str, shape: tuple[int, ...], *sizes: int) -> tuple:
        return tuple(sharding.partition_spec(path, shape, Mesh(*sizes)))  # type: ignore[arg-type]

    assert spec("block_0.mlp.hidden.kernel", (8, 32), 2, 2, 2) == ("fsdp", "model")
    assert spec("block_0.mlp.output.kernel", (32, 8), 2, 2, 2) == ("model", "fsdp")
    assert spec("token_embedding.table", (65, 32), 1, 4, 2) == (None, ("model", "fsdp"))
    assert spec("head.kernel", (32, 65), 1, 4, 2) == (("fsdp", "model"), None)
    assert spec("block_0.mlp.hidden.bias", (32,), 1, 4, 2) == (("model", "fsdp"),)
    assert spec("head.bias", (65,), 1, 4, 2) == (None,)  # nothing divides it
    assert spec("head.kernel", (7, 65), 1, 4, 2) == (None, None)
    assert spec("0.mu.(64, 64)", (12, 64, 64), 1, 4, 2) == ("fsdp", "model", None)


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ({"data": 2}, "--mesh.data 2 wants 2 devices, but JAX sees 1"),
        ({"fsdp": 3}, "--mesh.fsdp 3 wants 3 devices"),
        ({"model": 2, "data": 1}, "--mesh.model 2 wants 2 devices"),
    ],
)
def test_more_devices_than_there_are_is_refused(mesh: dict, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        sharding.make_mesh(Config(TINY, mesh=MeshConfig(**mesh)))


REFUSALS = {
    "--train.batch-size 12 --train.micro-batch-size 0": "--train.batch-size is 12, but must be a ",
    "--train.micro-batch-size 4": "--train.micro-batch-size is 4, but must be a multiple of the 8",
    "--mesh.model 8": "--mesh.model is 8, but must divide --model.n-head 2",
    "--mesh.fsdp 3": "--mesh.data -1 x --mesh.fsdp 3 makes use of 6 of the 8 devices",
    "--mesh.data 16": "--mesh.data 16 wants 16 devices, but JAX sees 8",
    "--mesh.fsdp -1": "only one of them can be -1",
    "--mesh.fsdp 0": "--mesh.fsdp is 0",
    "--mesh.coordinator here:1": "--mesh.coordinator, --mesh.processes and --mesh.process go",
}


ALL_REFUSALS = """
import sys, train
for flags in sys.argv[2:]:
    try:
        train.main([*sys.argv[1].split(), *flags.split()])
    except SystemExit as stop:
        assert stop.code == 2, stop.code
"""


def test_layouts_that_cannot_be_are_refused_in_one_line(config: Path, tmp_path: Path) -> None:
    common = f"--config {config} --run-dir {tmp_path / 'run'}"
    command = [sys.executable, "-c", ALL_REFUSALS, common, *REFUSALS]
    done = subprocess.run(command, env=environment(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, (flags, says) in zip(done.stderr.splitlines(), REFUSALS.items(), strict=True):
        assert line.startswith("error: "), flags
        assert says in line, flags
    assert not (tmp_path / "run").exists()


# --- processes


@pytest.fixture(scope="module")
def one_device(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    run("train.py", "--config", config, "--run-dir", folder, n_devices=1)
    return folder


def test_two_processes_train_as_one_device_does(
    one_device: Path, config: Path, tmp_path: Path
) -> None:
    pair = Pair.trains(tmp_path, (config, config), "--mesh.fsdp", 2, "--mesh.model", 2)
    assert pair.wait() == [0, 0], pair.printed(0) + pair.printed(1)
    assert "2 processes x 4 x cpu as data 2 x fsdp 2 x model 2" in pair.printed(0)
    assert not re.search("step|loss", pair.printed(1))  # only the first one prints
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one_device), rtol=1e-5)
    text = (one_device / "samples/20.txt").read_text()
    assert (tmp_path / "run/samples/20.txt").read_text() == text


def test_a_signal_to_one_process_stops_both_and_one_device_continues(
    config: Path, tmp_path: Path
) -> None:
    flags = ["--train.max-steps", 100_000, "--train.eval-interval", 100_000]
    pair = Pair.trains(tmp_path, (config, config), *flags, "--train.sample-tokens", 0)
    wait_for_steps(pair)
    pair.processes[1].send_signal(signal.SIGTERM)
    assert pair.wait() == [143, 143], pair.printed(0) + pair.printed(1)
    (said,) = re.findall(r"SIGTERM: saved step (\d+)", pair.printed(0))
    more = [*flags[2:], "--train.max-steps", int(said) + 2, "--train.sample-tokens", 0]
    printed = run("train.py", "--config", config, "--run-dir", tmp_path / "run", *more, n_devices=1)
    assert f"continuing at step {said}" in printed
    assert (tmp_path / "run/checkpoints" / str(int(said) + 2)).exists()


def test_processes_with_other_knobs_are_refused(config: Path, tmp_path: Path) -> None:
    """And one whose peer never comes."""
    common = [REPO / "train.py", "--config", config, "--run-dir", tmp_path / "run"]
    common += ["--mesh.coordinator", free_address(), "--mesh.processes", 2]
    commands = ([*common, "--mesh.process", i, "--seed", i] for i in range(2))
    pair = Pair(tmp_path, *commands)
    codes = pair.wait()
    printed = pair.printed(0) + pair.printed(1)
    assert 2 in codes, printed
    assert 0 not in codes, printed
    assert re.search("error: process . has seed ., process . has .; start all of them", printed)
    alone = f"""
import sys, train
from gptjax import processes
processes.START_SECONDS = 2
train.main({[str(part) for part in common[1:]]} + ["--mesh.process", sys.argv[1]])
"""
    done = subprocess.run(
        [sys.executable, "-c", alone, "1"], env=environment(1), capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "error: the processes do not find one another" in done.stderr.splitlines()[-1]


def wait_for_steps(pair: Pair, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not re.search(r"step [1-9]", pair.printed(0)):
        assert time.monotonic() < end, pair.printed(0)
        assert [p.poll() for p in pair.processes] == [None, None], pair.printed(0)
        time.sleep(0.2)


def test_checkpoints_move_between_layouts(tmp_path: Path) -> None:
    """Between 1 device, 8, 4 x 2, and two processes, in every direction, to the bit."""
    run(WORKER, "save", tmp_path, n_devices=8)
    for verb in ("save", "restore"):
        address = free_address()
        pair = Pair(tmp_path, *([WORKER, verb, tmp_path, i, address] for i in range(2)))
        assert pair.wait() == [0, 0], pair.printed(0) + pair.printed(1)
        assert "->" not in pair.printed(0) + pair.printed(1)
    assert run(WORKER, "restore", tmp_path, n_devices=8) == ""


def test_when_one_process_fails_the_other_ends_and_names_it(config: Path, tmp_path: Path) -> None:
    """kill -9, SIGSTOP and an exception, on either of them; all six pairs at once."""
    fails = tmp_path / "fails.py"
    fails.write_text(config.read_text() + FAILS)
    flags = ["--train.max-steps", 100_000, "--train.eval-interval", 100_000]
    flags += ["--train.sample-tokens", 0, "--train.eval-batches", 0]
    pairs: dict[tuple[str, int], Pair] = {}
    for how in ("SIGKILL", "SIGSTOP", "exception"):
        for victim in (0, 1):
            folder = tmp_path / f"{how}-{victim}"
            folder.mkdir()
            configs = [config, config]
            if how == "exception":
                configs[victim] = fails
            pairs[how, victim] = Pair.trains(folder, (configs[0], configs[1]), *flags)
    for (how, victim), pair in pairs.items():
        if how == "exception":
            pair.processes[victim].wait(200)
        else:
            wait_for_steps(pair)
            pair.processes[victim].send_signal(getattr(signal, how))
        code = pair.processes[1 - victim].wait(30)
        pair.kill()
        last = pair.printed(1 - victim).splitlines()[-1]
        assert code == 1, (how, victim, pair.printed(1 - victim)[-2000:])
        assert f"error: process {1 - victim} lost process {victim} of 2" in last, (how, victim)
        if how == "exception":
            assert pair.processes[victim].returncode == 1
            assert "RuntimeError: it broke" in pair.printed(victim)


# --- memory


def seed_like(n_layer: int, remat: bool) -> tuple[models.GPT, GPTConfig]:
    config = GPTConfig(n_layer=n_layer, n_head=2, n_embd=32, block_size=64, dropout=0.2)
    return models.GPT(config, VOCAB_SIZE, remat=remat), config


def dropped_out_loss(model: models.GPT, params: Any) -> Any:
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (8, 65)).astype(np.int32)
    weights = np.ones((8, 64), np.float32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    return training.cross_entropy(model, params, batch, jax.random.key(5), jnp.arange(8))[0]


def kept_bytes(model: models.GPT) -> int:
    """Of what the forward pass leaves to the backward pass, parameters aside.

    Not of what XLA asks for: its CPU backend computes again what remat says, and frees nothing.
    """
    shapes = jax.eval_shape(lambda: models.init(model, 1))
    backward = jax.eval_shape(lambda p: jax.vjp(partial(dropped_out_loss, model), p)[1], shapes)
    sizes = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(t)) for t in (backward, shapes)]
    return sizes[0] - sizes[1]


def test_remat_computes_the_same_and_keeps_less() -> None:
    """Also the same dropout masks, when it computes them again."""
    (model, _), (remat, _) = seed_like(2, False), seed_like(2, True)
    params = models.init(model, seed=1)
    gradients = [jax.jit(jax.grad(partial(dropped_out_loss, m)))(params) for m in (model, remat)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), *gradients)
    assert kept_bytes(remat) < 0.2 * kept_bytes(model)


def test_the_estimate_of_memory_is_about_right() -> None:
    """Against what the backward pass is handed; by layers, as remat also counts one whole block."""

    def work(n_layer: int, remat: bool) -> tuple[float, float]:
        model, model_config = seed_like(n_layer, remat)
        train = TrainConfig(batch_size=8, remat=remat)
        config = Config(model_config, train=train, mesh=MeshConfig(data=1))
        optimizer = optim.build(config.optim, 10)
        shapes = jax.eval_shape(lambda: training.init_state(models.init(model, 0), optimizer))
        mesh = sharding.make_mesh(config)
        shapes = checkpoint.with_sharding(shapes, sharding.shardings(shapes, mesh))
        held, work = memory.estimate(config, model, shapes, 8, 64)
        assert held == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        return work - sharding.bytes_per_device(shapes.params), kept_bytes(model)

    for remat in (False, True):
        (few, few_kept), (many, many_kept) = work(2, remat), work(6, remat)
        assert many - few == pytest.approx(many_kept - few_kept, rel=0.3), remat
    estimated, kept = work(6, False)
    assert estimated == pytest.approx(kept, rel=0.3)


def test_out_of_memory_says_what_to_change() -> None:
    flags = r"--train\.micro-batch-size.*--train\.remat.*--mesh\.fsdp"
    with pytest.raises(UserError, match=flags), memory.advice():
        jnp.zeros((1 << 20, 1 << 20, 1 << 10)).block_until_ready()
