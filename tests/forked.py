"""`python ARGUMENTS` in a process of its own, which has imported gptjax and started no device.

It is forked from a server, which starts with the first one. That saves the two to three seconds of
imports; from there on a program does what it does otherwise. How programs start from nothing is
test_cli.py's to check.
"""

import contextlib
import functools
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
_lock = threading.Lock()


class Python:
    """Like subprocess.Popen([sys.executable, *arguments]); what it prints goes into files."""

    def __init__(self, *arguments: object, out: Path, err: Path | None = None, **options: Any):
        """err: default, into `out`, too. options: of `_become`."""
        self.out, self.returncode = out, None
        for file in (out, err or out):
            file.write_text("")
        files = [str(options.pop("stdin", os.devnull)), str(out), str(err or out)]
        environment = {k: v for k, v in os.environ.items() if "_proxy" not in k.lower()}
        environment |= options.pop("environment", {})
        self.pid = _ask((list(map(str, arguments)), files, environment, options))

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(self.pid)
        return self.returncode

    def wait(self, seconds: float = 200) -> int:
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", seconds)
            time.sleep(0.02)
        return code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()


def run(*arguments: object, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Like subprocess.run([sys.executable, *arguments], capture_output=True, text=True)."""
    with tempfile.TemporaryDirectory() as folder:
        given, out, err = (Path(folder) / name for name in ("in", "out", "err"))
        given.write_text(stdin)
        program = Python(*arguments, out=out, err=err, stdin=given, **options)
        try:
            code = program.wait(600)
        finally:
            program.kill()
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def _ask(request: Any) -> Any:
    with _lock:
        server, _ = _start_server()
        server.send(request)
        return server.recv()


@functools.cache
def _start_server() -> tuple[Connection, subprocess.Popen[bytes]]:
    ours, theirs = Pipe()
    command = [sys.executable, __file__, str(theirs.fileno())]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    server = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    return ours, server


def stop_server() -> None:
    if _start_server.cache_info().currsize:
        connection, server = _start_server()
        connection.close()
        server.wait()


def _serve(requests: Connection) -> None:
    """Starts programs; given the id of one, says its exit code, None if it still runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends pytest, and that this process
    # Python 3.12 warns of it, but the threads are numpy's, which expect it.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    while True:
        request = requests.recv()
        if isinstance(request, int):
            pid, status = os.waitpid(request, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            arguments, paths, environment, options = request
            flags = os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND
            files = [os.open(*file) for file in zip(paths, flags, strict=True)]
            answer = os.fork()
            if not answer:
                requests.close()
                _become(arguments, files, environment, **options)
            for file in files:
                os.close(file)
        requests.send(answer)


def _become(
    arguments: list[str],
    files: list[int],
    environment: dict[str, str],
    n_devices: int = 1,
    core: int | None = None,
) -> None:
    """What a forked process does instead of returning. core: the only one it uses."""

    def set_up() -> None:
        for fd, file in enumerate(files):
            os.dup2(file, fd)
            os.close(file)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, closefd=False) for fd in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(REPO)
        if core is not None:
            os.sched_setaffinity(0, {core})
        import jax

        jax.config.update("jax_num_cpu_devices", n_devices)

    drill_children.run_and_exit(set_up, lambda: _execute(*arguments))


def _execute(program: str, *arguments: str) -> None:
    """A file, or -c and code."""
    if program == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        exec(compile(code, "-c", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    from benchmarks import drill_children  # with it, all of gptjax

    with contextlib.suppress(EOFError):  # pytest ended
        _serve(Connection(int(sys.argv[1])))
