"""Measures competitors in turns, each in its own process, so a slow minute affects all of them.

`race` starts one child process per competitor, warms it up, and then times each of them in every
round. The child calls `serve`, which computes nothing until it is asked.
"""

import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

# A round of one competitor takes about this long.
SECONDS_PER_TURN = 2.0
# A competitor that needs more seconds for one unit is timed in the first round only.
SLOW = 90.0
CHILD = {
    # Competitors share a GPU, so none may reserve all of its memory.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TOKENIZERS_PARALLELISM": "false",
}


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


def race(module: str, competitors: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Runs `python -m module JSON` for each competitor and returns one row for each.

    A competitor that fails keeps its row, with the last line that it printed as `error`.
    """
    children, rows, logs = [], [], {}
    with contextlib.ExitStack() as closing:
        for competitor in competitors:
            command = [sys.executable, "-m", module, json.dumps(competitor)]
            log = closing.enter_context(tempfile.TemporaryFile("w+"))
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | CHILD,
            )
            closing.enter_context(child)
            logs[child.pid] = log
            closing.callback(child.kill)  # called before the line above waits
            row: dict[str, Any] = {"name": competitor["name"], "seconds_per_unit": []}
            assert child.stdout is not None
            line = child.stdout.readline()
            if line:
                started = json.loads(line)
                seconds = started["second"] / started["warm_up"]
                quantum = started["quantum"]
                units = max(1, round(SECONDS_PER_TURN / seconds / quantum)) * quantum
                row |= {
                    "units_per_turn": units,
                    "compile_seconds": started["first"] - started["second"],
                }
                children.append((child, row))
            else:
                row["error"] = last_line(child, log)
            print(f"{row['name']}: {row.get('error', 'ready')}", file=sys.stderr, flush=True)
            rows.append(row)
        rates = []
        for i in range(rounds):
            for child, row in children:
                if i and row["seconds_per_unit"][0] > SLOW:
                    continue
                reply = ask(child, {"run": row["units_per_turn"]})
                if reply is None:
                    row["error"] = last_line(child, logs[child.pid])
                    print(f"{row['name']}: {row['error']}", file=sys.stderr, flush=True)
                else:
                    row["seconds_per_unit"].append(reply["seconds"] / row["units_per_turn"])
            children = [(child, row) for child, row in children if "error" not in row]
            replies = (ask(child, {"rate": 1}) for child, _ in children)
            rates.append(max((reply["rate"] for reply in replies if reply), default=0))
            print(f"round {i + 1} of {rounds}", file=sys.stderr, flush=True)
        for child, row in children:
            row["peak_bytes"] = (ask(child, {"peak": 1}) or {"peak_bytes": 0})["peak_bytes"]
            row["matmul_rate"] = statistics.median(rates)
            row["median"] = statistics.median(row["seconds_per_unit"])
            row["least"], row["most"] = min(row["seconds_per_unit"]), max(row["seconds_per_unit"])
    return rows


def ask(child: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any] | None:
    """The child's reply, or None if it has died."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except BrokenPipeError:
        line = ""
    return json.loads(line) if line else None


def last_line(child: subprocess.Popen[str], log: IO[str]) -> str:
    """The last line that a dead child printed, or its exit code."""
    child.wait()
    log.seek(0)
    lines = log.read().strip().splitlines()
    return lines[-1] if lines else f"exit code {child.returncode}"
