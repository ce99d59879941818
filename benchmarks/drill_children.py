"""Programs that the drills start, watch and end: forked children, and workers for many cases.

Import this before jax has started a device. A forked child does what a new process does after its
imports: it has its own output files, signals and one core.
"""

import atexit
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gptjax import cli, train
from gptjax.commands import sample as sample_command
from gptjax.runs import run_directory
from gptjax.runs.metrics import read_metrics
from gptjax.scale import processes

REPO = Path(__file__).parents[1]


def one_core(index: int = 0) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index % len(cores)]})


class Child:
    """`gptjax ARGV` in a process of its own; its output goes to LOG.out and LOG.err."""

    def __init__(
        self,
        argv: list[str],
        log: Path,
        before: Callable[[], None] | None = None,
        core: int = 0,
        fork: bool = True,
    ):
        """before: called in the child. fork=False starts a new Python, as a shell does."""
        self._files = [log.with_name(f"{log.name}.{name}") for name in ("out", "err")]
        for file in self._files:
            file.unlink(missing_ok=True)
        self._code: int | None = None
        if fork:
            self.pid = os.fork()
            if not self.pid:
                _become(argv, self._files, before, core)
        else:
            command = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
            command += [sys.executable, "-m", "gptjax", *argv]
            with open(self._files[0], "wb") as out, open(self._files[1], "wb") as err:
                env = {**os.environ, "PYTHONPATH": str(REPO)}
                self._popen = subprocess.Popen(command, stdout=out, stderr=err, env=env)
            self.pid = self._popen.pid

    def send(self, signum: int) -> bool:
        """Sends a signal. False if the process has ended."""
        if self._poll() is not None:
            return False
        os.kill(self.pid, signum)
        return True

    def wait(self, seconds: float) -> int | str:
        """The exit code; -N for signal N; "hang" if it has to be killed."""
        end = time.monotonic() + seconds
        while (code := self._poll()) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self._code = -9
                return "hang"
            time.sleep(0.005)
        return code

    def _poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def log(self, which: int = 0) -> str:
        """What it printed; which=2: on stderr alone."""
        files = self._files[1:] if which == 2 else self._files
        return "".join(f.read_text(errors="replace") for f in files if f.exists())


def _become(
    argv: list[str], files: list[Path], before: Callable[[], None] | None, core: int
) -> None:
    """What a forked child does instead of returning."""

    def set_up() -> None:
        for fd, path in zip((1, 2), files, strict=True):
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, fd)
            os.close(opened)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, closefd=False) for fd in (1, 2))
        one_core(core)
        sys.argv = ["gptjax", *argv]
        if before:
            before()

    run_and_exit(set_up, lambda: cli.main(argv))


def run_and_exit(set_up: Callable[[], None], program: Callable[[], object]) -> NoReturn:
    """In a forked process: ends it as Python ends after a program; with 70 if set_up fails."""
    code = 70
    try:
        set_up()
        code = _code_of(program)
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _code_of(function: Callable[[], object]) -> int:
    try:
        function()
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def called(function: Callable[[], object]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a function that does what a program does, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _code_of(function)
    return code, out.getvalue(), err.getvalue()


def is_one_line(err: str) -> bool:
    """Whether it has one error, as the last line, and no traceback."""
    lines = err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in err


class Guarded:
    """A worker that calls a function for one case after another, and is killed if that hangs."""

    def __init__(self, function: Callable[[Any], Any], folder: Path):
        self._function, self._folder = function, folder
        self._context = multiprocessing.get_context("fork")
        self._start()

    def _start(self) -> None:
        self._ours, theirs = self._context.Pipe()
        self._worker = self._context.Process(target=self._work, args=(theirs,), daemon=True)
        self._worker.start()
        theirs.close()

    def _work(self, pipe: Any) -> None:
        errors = os.open(self._folder / "worker.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(errors, 2)  # of libraries, not of gptjax: that is in the result
        one_core()
        while True:
            case = pipe.recv()
            if case is None:
                return
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            result = self._function(case)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if grown > 2 << 20:  # in KiB
                result = (99, "", f"took {grown >> 10} MiB of memory")
            pipe.send(result)

    def call(self, case: Any, seconds: float) -> Any:
        """The function's result; (99, "", why) if the worker hung, died or took too much memory."""
        self._ours.send(case)
        failure = f"no answer after {seconds} s"
        if self._ours.poll(seconds):
            try:
                return self._ours.recv()
            except EOFError:
                self._worker.join(10)
                failure = f"the process died with {self._worker.exitcode}"
        self._worker.kill()
        self._worker.join()
        self._start()
        return 99, "", failure

    def close(self) -> None:
        self._ours.send(None)
        self._worker.join(20)


# --- what is compared


def _digest(run: Path) -> dict[str, Any]:
    """Every loss, and a hash of every array of the last checkpoint."""
    import jax
    import numpy as np

    from gptjax import models, optim, training
    from gptjax.runs.checkpoints import Checkpoints
    from gptjax.scale.sharding import with_sharding

    config = run_directory.read_config(run)
    model = models.build(config.model, run_directory.read_tokenizer(run))
    optimizer = optim.build(config.optim, config.train.max_steps)
    shapes = jax.eval_shape(lambda: training.init_state(models.init(model, 0), optimizer))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        step = checkpoints.steps()[-1]
        state = checkpoints.restore(step, with_sharding(shapes, device))
    hashed = hashlib.sha256()
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        hashed.update(np.asarray(leaf).tobytes())
    losses = [
        [row["step"], name, value]
        for row in read_metrics(run)
        for name, value in row.items()
        if name.endswith("loss")
    ]
    return {"step": step, "arrays": hashed.hexdigest(), "losses": losses}


def digest(run: Path, folder: Path) -> dict[str, Any]:
    """`_digest` in a child, so that this process starts no device."""
    result = folder / "digest.json"
    result.unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            one_core()
            code = _code_of(lambda: result.write_text(json.dumps(_digest(run))))
        finally:
            os._exit(code)
    os.waitpid(pid, 0)
    return json.loads(result.read_text()) if result.exists() else {}


def sample(case: tuple[Path, str]) -> tuple[int, str, str]:
    """Greedy text of a run."""
    run, step = case
    flags = ["--step", step, "--greedy", "--max-new-tokens", "24", "--prompt", "abc"]
    return called(lambda: sample_command.main([str(run), *flags]))


def resume(case: tuple[list[str], Path]) -> tuple[int, Any, str]:
    """A run continued to its end, and its digest."""
    argv, run = case
    code, _, err = called(lambda: train.main(argv[1:]))
    return code, _digest(run) if code == 0 else None, err


def moment(run: Path, child: Child) -> str:
    """What a run is doing, by what it printed and by its files."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    if "\nstep " not in child.log():
        return "in start-up"
    return "in training" if all(name.isdecimal() for name in names) else "in saving"


# --- harm


def do_harm(run: Path, rng: random.Random) -> str:
    """Damages one random file of a run directory; says how."""
    path = rng.choice(sorted(p for p in run.rglob("*") if p.is_file()))
    name, content = path.relative_to(run), bytearray(path.read_bytes())
    kind = rng.choices(["flip", "cut", "empty", "remove", "folder"], [60, 20, 5, 10, 5])[0]
    if kind == "flip" and content:
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        return f"a flip of byte {at} of {name}"
    if kind == "cut" and content:
        path.write_bytes(content[: rng.randrange(len(content))])
        return f"a cut of {name}"
    if kind == "folder" and path.parent != run:
        shutil.rmtree(path.parent)
        return f"the removal of {name.parent}/"
    if kind == "remove":
        path.unlink()
        return f"the removal of {name}"
    path.write_bytes(b"")
    return f"the emptying of {name}"


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class CountWrites:
    """Counts what Python writes below a folder, into a file."""

    def __init__(self, folder: Path, count: Path):
        self._folder, self._count, self._n = str(folder), count, 0

    def __call__(self) -> None:
        sys.addaudithook(self._hook)
        atexit.register(lambda: self._count.write_text(str(self._n)))

    def _hook(self, event: str, arguments: tuple) -> None:
        writes = event in ("os.mkdir", "os.rename")
        if event == "open":  # path, mode, flags
            writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and os.fspath(str(arguments[0])).startswith(self._folder):
            self._n += 1
            self.at_write()

    def at_write(self) -> None:
        pass


class FillDisk(CountWrites):
    """Fills the disk at the AT-th write of Python, up to `left` bytes."""

    def __init__(self, mount: Path, at: int, left: int):
        super().__init__(mount, Path(os.devnull))
        self._at, self._left = at, left

    def at_write(self) -> None:
        if self._n != self._at:
            return
        self._n += 1  # the filler's own open
        with open(f"{self._folder}/filler", "wb") as filler:
            found = os.statvfs(self._folder)
            size = found.f_bavail * found.f_frsize - self._left
            while size > 0:
                try:
                    os.posix_fallocate(filler.fileno(), 0, size)
                    break
                except OSError:  # another thread wrote in the meantime
                    size -= 4096


def connected() -> None:
    """Makes a process print CONNECTED when it has found the others."""
    start = processes._start

    def start_and_say(*arguments: Any) -> None:
        start(*arguments)
        print("CONNECTED", flush=True)

    processes._start = start_and_say


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
