"""Measures competitors in turns, each in its own process, so a slow minute affects all of them.

`race` starts one child process per competitor, warms it up, and then times each of them in every
round. The child calls `serve`, which computes nothing until it is asked.
"""

import contextlib
import json
import math
import os
import re
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A round of one competitor takes about this long.
SECONDS_PER_TURN = 2.0
# A competitor that needs more seconds for one unit is timed in the first round only.
SLOW = 90.0
CHILD = {
    # Competitors share a GPU, so none may reserve all of its memory.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
UNTUNED = {"XLA_FLAGS": "--xla_gpu_autotune_level=0"} | CHILD
"""Where only results count: a program that was not tuned computes the same, and compiles sooner."""


def serve(
    run: Callable[[int], None],
    warm_up: int = 1,
    quantum: int = 1,
    rate: Callable[[], float] = lambda: 0.0,
) -> None:
    """Answers the requests of the parent process on stdin.

    run(n) does n units of work and waits for the device; n is a multiple of `quantum`. rate()
    measures the floating-point operations per second of a matmul.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr

    def reply(**fields: Any) -> None:
        print(json.dumps(fields), file=replies, flush=True)

    def timed(n: int) -> float:
        start = time.perf_counter()
        run(n)
        return time.perf_counter() - start

    first = timed(warm_up)
    second = first if first > SLOW else timed(warm_up)
    reply(first=first, second=second, warm_up=warm_up, quantum=quantum)
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            reply(seconds=timed(request["run"]))
        elif "rate" in request:
            reply(rate=rate())
        else:
            reply(peak_bytes=peak_bytes())


def competitor(about: str) -> dict[str, Any]:
    """The competitor that `race` passes as the first argument; without one, prints `about`."""
    if len(sys.argv) != 2 or not sys.argv[1].startswith("{"):
        print(about.strip())
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    return json.loads(sys.argv[1])


def peak_bytes() -> int:
    """Peak memory of this process: on the GPU if it uses one, else in RAM."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            return torch.cuda.max_memory_allocated()
    if "jax" in sys.modules:
        import jax

        statistics_ = jax.local_devices()[0].memory_stats()
        if statistics_:
            return statistics_["peak_bytes_in_use"]
    # Not getrusage: its maximum includes what the parent held when it started this process.
    status = Path("/proc/self/status")
    if status.exists():
        (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(kib) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def race(
    module: str,
    competitors: list[dict[str, Any]],
    rounds: int,
    together: bool = False,
    deadline: float = math.inf,
) -> list[dict[str, Any]]:
    """Runs `python -m module JSON` for each competitor and returns one row for each.

    A competitor that fails keeps its row, with the last line that it printed as `error`. together:
    all start, and compile, at once. deadline: of time.perf_counter(); what is not ready by then
    fails, and no round begins that would end later.
    """
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as closing:
        racers = []
        for competitor in competitors:
            racer = Racer(module, competitor, deadline)
            closing.callback(racer.close)
            racers.append(racer)
            rows.append(racer.row)
            if not together:
                racer.get_ready()
        for racer in racers:
            if together:
                racer.get_ready()
        rates, round_seconds = [], 0.0
        for i in range(rounds):
            start = time.perf_counter()
            if start + round_seconds > deadline:
                break
            for racer in racers:
                row = racer.row
                if "error" in row or (i and row["seconds_per_unit"][0] > SLOW):
                    continue
                if reply := racer.ask({"run": row["units_per_turn"]}):
                    row["seconds_per_unit"].append(reply["seconds"] / row["units_per_turn"])
            running = [racer for racer in racers if "error" not in racer.row]
            replies = (racer.ask({"rate": 1}) for racer in running)
            rates.append(max((reply["rate"] for reply in replies if reply), default=0))
            round_seconds = time.perf_counter() - start
            print(f"round {i + 1} of {rounds}", file=sys.stderr, flush=True)
        for racer in racers:
            row = racer.row
            if "error" not in row and not row["seconds_per_unit"]:
                row["error"] = NOT_IN_TIME
            if "error" in row:
                continue
            row["peak_bytes"] = (racer.ask({"peak": 1}) or {"peak_bytes": 0})["peak_bytes"]
            row["matmul_rate"] = statistics.median(rates)
            row["median"] = statistics.median(row["seconds_per_unit"])
            row["least"], row["most"] = min(row["seconds_per_unit"]), max(row["seconds_per_unit"])
    return rows


NOT_IN_TIME = "not measured in time"


class Racer:
    """One competitor in a process of its own, and its row."""

    def __init__(self, module: str, competitor: dict[str, Any], deadline: float) -> None:
        self.row: dict[str, Any] = {"name": competitor["name"], "seconds_per_unit": []}
        self._deadline = deadline
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(competitor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | CHILD,
        )

    def get_ready(self) -> None:
        """Waits until it has compiled; chooses the units of a turn."""
        if started := self._reply():
            seconds = started["second"] / started["warm_up"]
            quantum = started["quantum"]
            units = max(1, round(SECONDS_PER_TURN / seconds / quantum)) * quantum
            compile_seconds = started["first"] - started["second"]
            self.row |= {"units_per_turn": units, "compile_seconds": compile_seconds}
            print(f"{self.row['name']}: ready", file=sys.stderr, flush=True)

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Its reply, or None if it has died or is too slow. The row then has an error."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any] | None:
        assert self._child.stdout is not None
        left = self._deadline - time.perf_counter()
        in_time = left == math.inf
        if not in_time:
            in_time = bool(select.select([self._child.stdout], [], [], max(0.0, left))[0])
        line = self._child.stdout.readline() if in_time else ""
        if line:
            return json.loads(line)
        if not in_time:
            self._child.kill()
        self._child.wait()
        self.row["error"] = self._last_line() if in_time else NOT_IN_TIME
        print(f"{self.row['name']}: {self.row['error']}", file=sys.stderr, flush=True)
        return None

    def _last_line(self) -> str:
        """The last line that the dead child printed, or its exit code."""
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self._child.returncode}"

    def close(self) -> None:
        self._child.kill()
        with self._child, self._log:
            pass
