"""Drills: what a run survives, tried many times and counted. Results: docs/benchmarks/drills.json.

    python -m benchmarks.drills                       # all of it, about an hour on two cores
    python -m benchmarks.drills --only kill,disk      # some drills; the others keep their figures
    python -m benchmarks.drills --scale 0.02          # two of a hundred

A drill does harm at random moments or places, and then looks: the right result, or one line that
says what is wrong. Programs are forked from this process, which has imported jax but started no
device: that saves two seconds a case, and the program does from there what it does otherwise.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CACHE = Path(tempfile.gettempdir()) / "gptjax-drills-cache"
# Before jax is imported. Programs that are compared bit for bit are compiled alike, and use one
# core: on several, XLA may change the order of sums from run to run.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["MPLBACKEND"] = "agg"

from benchmarks import drill_children as children  # noqa: E402
from benchmarks import fuzz  # noqa: E402
from benchmarks.drill_children import Child, Guarded, is_one_line  # noqa: E402
from benchmarks.records import FOLDER, read  # noqa: E402

MAX_STEPS, HALF = 12, 6
CONFIG = """
from pathlib import Path
from gptjax.config import Config, TextDataConfig, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, dropout=0.2),
    data=TextDataConfig(path=Path({text!r})),
    optim=OptimConfig(learning_rate=1e-2),
    train=TrainConfig(max_steps={max_steps}, batch_size=8, micro_batch_size=4, eval_interval=2,
        eval_batches=2, log_interval=1, sample_tokens=0),
)
"""
ALPHABET = "abcdefgh \n"


class Bench:
    """A folder with a text, a configuration, and the run that nothing disturbs."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.text = text = folder / "text.txt"
        text.write_text(ALPHABET + "".join(random.Random(0).choices(ALPHABET, k=1990)))
        self.config = folder / "tiny.py"
        self.config.write_text(CONFIG.format(text=str(text), max_steps=MAX_STEPS))
        self.whole, self.half = folder / "whole", folder / "half"
        for _ in range(2):  # the second one finds its programs compiled: so long a start takes
            shutil.rmtree(self.whole, ignore_errors=True)
            began = time.monotonic()
            failure = self.finish(self.whole)
            assert not failure, failure
            self.seconds = time.monotonic() - began
        self.finish(self.half, "--train.max-steps", HALF)
        self.reference = children.digest(self.whole, folder)

    def train(self, run: Path, *flags: object) -> list[str]:
        line = ["train", "--config", self.config, "--run-dir", run, *flags]
        return list(map(str, line))

    def finish(self, run: Path, *flags: object) -> str:
        """Trains to the end. Returns "" or how it failed."""
        child = Child(self.train(run, *flags), self.folder / "log")
        code = child.wait(120)
        return "" if code == 0 else f"exit code {code}: {child.log()[-500:]}"

    def differs(self, run: Path) -> str:
        """ "", or how a run that was continued to its end differs from the undisturbed one."""
        if failure := self.finish(run):
            return failure
        found = children.digest(run, self.folder)
        return "" if found == self.reference else "other losses or parameters"

    def is_reference(self, found: dict[str, Any], lost_history: bool) -> bool:
        """Whether a digest is that of the whole run. lost_history: of what came after HALF."""
        if not lost_history:
            return found == self.reference
        new, want = (
            {**d, "losses": [row for row in d["losses"] if row[0] > HALF]}
            for d in (found, self.reference)
        )
        return new == want

    def new(self, name: str) -> Path:
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path


Record = dict[str, Any]


def record(tried: int, failures: list[str], **facts: Any) -> Record:
    return {
        "tried": tried,
        "survived": tried - len(failures),
        **facts,
        "failures": [text[-600:] for text in failures[:20]],
    }


def stopped(bench: Bench, n: int, signum: int, codes: set[int]) -> Record:
    """Runs that get a signal at random moments until they end; then compared with the whole one.

    A moment is counted from the start, and one in ten programs is started by the shell, so that
    imports are hit too. A run gets up to six signals.
    """
    failures: list[str] = []
    tried, during = 0, Counter[str]()
    while tried < n:
        run, log, in_chain, failed = bench.new("run"), bench.folder / "log", 0, ""
        while tried + in_chain < n and in_chain < 6 and not failed:
            imports = bench.rng.random() < 0.1
            child = Child(bench.train(run), log, fork=not imports)
            time.sleep(bench.rng.uniform(0, bench.seconds + 3 * imports))
            moment = children.moment(run, child)
            if not child.send(signum):
                break  # it had ended
            code = child.wait(60)
            if code == 0:
                break
            in_chain += 1
            during[moment] += 1
            if code not in codes or "Traceback" in child.log():
                failed = f"exit code {code} {moment}: {child.log()[-400:]}"
        failed = failed or bench.differs(run)
        tried += in_chain
        failures += [failed] * min(in_chain, 1) if failed else []
    return record(tried, failures, moments=dict(during))


def kill(bench: Bench, n: int) -> Record:
    """kill -9."""
    return stopped(bench, n, 9, {-9})


def term(bench: Bench, n: int) -> Record:
    """SIGTERM. Before anything is to be saved, Python may not have started: then it is -15."""
    return stopped(bench, n, 15, {143, -15})


def damage(bench: Bench, n: int) -> Record:
    """A byte flipped, a file cut, emptied or removed; then sampled or continued."""
    sampler = Guarded(children.sample, bench.folder)
    steps = sorted(int(p.name) for p in (bench.whole / "checkpoints").glob("[0-9]*"))
    right: dict[str, tuple[int, str, str]] = {}
    for step in ("best", "latest", *map(str, steps)):
        right[step] = sampler.call((bench.whole, step), 120)
        assert right[step][0] == 0, right[step]
    trainer = Guarded(children.resume, bench.folder)
    failures, outcomes = [], Counter[str]()
    for _ in range(n):
        resumes = bench.rng.random() < 0.25
        run = bench.new("damaged")
        shutil.copytree(bench.half if resumes else bench.whole, run)
        what = children.do_harm(run, bench.rng)
        if resumes:
            found = trainer.call((bench.train(run), run), 120)
            ends_right = found[0] == 0 and bench.is_reference(found[1], "metrics" in what)
        else:
            step = bench.rng.choice(["best", "latest"])
            found = sampler.call((run, step), 120)
            # Another checkpoint, if that is said, or if the wanted one was removed as a whole.
            removed = not all((run / "checkpoints" / str(s)).exists() for s in steps)
            others = [r[1] for s, r in right.items() if f"step {s}," in found[2]]
            fell_back = found[1] in others and (removed or "checkpoint" in found[2])
            ends_right = found[0] == 0 and (found[1] == right[step][1] or fell_back)
        action = "resume" if resumes else "sample"
        if ends_right:
            outcomes["right result"] += 1
        elif found[0] in (1, 2) and is_one_line(found[2]):
            outcomes["one line"] += 1
        else:
            outcomes["failed"] += 1
            failures.append(f"{action} after {what}: {found[0]} {found[1]!r:.80} {found[2][-300:]}")
    sampler.close()
    trainer.close()
    return record(n, failures, outcomes=dict(outcomes))


def disk(bench: Bench, n: int) -> Record:
    """The disk becomes full at a write, with a few bytes left; later there is room again."""
    mount = bench.folder / "disk"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)]
    if os.geteuid() or subprocess.run(options, capture_output=True).returncode:
        return {"skipped": "needs root and a system that lets it mount a tmpfs"}
    failures, outcomes = [], Counter[str]()
    log, count, run = bench.folder / "log", bench.folder / "writes", mount / "run"
    others = [
        ["quantize", bench.whole, "--out", mount / "out"],
        ["export", bench.whole, "--to", "safetensors", "--out", mount / "out"],
        ["prepare", bench.text, "--out", mount / "out", "--tokenizer", "char"],
        ["plot", bench.whole, "--out", mount / "out.png"],
    ]
    lines = {"train": bench.train(run, "--train.sample-tokens", 8)}
    lines |= {str(line[0]): list(map(str, line)) for line in others}
    # One in five is not training.
    names = [list(lines)[1 + i // 5 % len(others)] if i % 5 == 4 else "train" for i in range(n)]
    try:
        n_writes = {}
        for name in dict.fromkeys(names):
            children.clear(mount)
            child = Child(lines[name], log, children.CountWrites(mount, count))
            assert child.wait(120) == 0, child.log()
            n_writes[name] = int(count.read_text())
        for i, name in enumerate(names):
            left = (0, 1 << 10, 1 << 14, 1 << 16)[i % 4]
            at = 1 + int(n_writes[name] * (i + bench.rng.random()) / n)
            children.clear(mount)
            child = Child(lines[name], log, children.FillDisk(mount, at, left))
            code, said = child.wait(120), child.log(2)
            (mount / "filler").unlink(missing_ok=True)
            failed = ""
            if code != 0 and not (code in (1, 2) and is_one_line(said)):
                failed = f"exit code {code}: {said[-400:]}"
            elif name == "train":
                failed = bench.differs(run)
            elif code != 0 and (half := [path.name for path in mount.iterdir()]):
                failed = f"left behind: {half}"
            outcomes[f"{name}, {'one line' if code else 'there was room'}"] += 1
            if failed:
                where = f"{name}, write {at} of {n_writes[name]}, {left} bytes left"
                failures.append(f"{where}: {failed}")
    finally:
        subprocess.run(["umount", str(mount)], check=False)
    return record(n, failures, outcomes=dict(outcomes))


def processes(bench: Bench, n: int) -> Record:
    """Two processes; kill -9 or SIGSTOP of one at a random moment after they found each other."""
    failures, slowest = [], 0.0
    for i in range(n):
        run, victim, signum = bench.new("pair"), bench.rng.randrange(2), (9, 19)[i % 2]
        logs = [bench.folder / f"log-{k}" for k in range(2)]
        address = f"127.0.0.1:{children.free_port()}"
        line = bench.train(run, "--train.max-steps", 100_000, "--coordinator", address)
        both = [
            Child([*line, "--processes", "2", "--process", str(k)], log, children.connected, k)
            for k, log in enumerate(logs)
        ]
        try:
            deadline = time.monotonic() + 60
            while not all("CONNECTED" in child.log() for child in both):
                assert time.monotonic() < deadline, [child.log() for child in both]
                time.sleep(0.01)
            time.sleep(bench.rng.uniform(0, 3 * bench.seconds))
            moment = children.moment(run, both[0])
            both[victim].send(signum)
            began = time.monotonic()
            code = both[1 - victim].wait(60)
            seconds, said = time.monotonic() - began, both[1 - victim].log(2)
        finally:
            for child in both:
                child.send(9)
                child.wait(10)
        slowest = max(slowest, seconds)
        names_it = is_one_line(said) and f"lost process {victim} of 2" in said
        if code != 1 or seconds > 30 or not names_it:
            failures.append(
                f"process {victim} got {signum} {moment}: the other ended with {code} after "
                f"{seconds:.0f} s: {said[-400:]}"
            )
    return record(n, failures, slowest_seconds=round(slowest, 1))


DRILLS: dict[str, tuple[int, Callable[[Bench, int], Record]]] = {
    "kill": (100, kill),
    "term": (50, term),
    "damage": (1000, damage),
    "disk": (20, disk),
    "fuzz": (10_000, fuzz.fuzz),
    "processes": (40, processes),
}


def run(names: list[str], scale: float, seed: int) -> dict[str, Record]:
    """The record of each drill. scale: share of the full count; at least one case each."""
    found = {}
    # No TemporaryDirectory, which every forked child would remove at its end.
    folder = Path(tempfile.mkdtemp(prefix="gptjax-drills-"))
    try:
        bench = Bench(folder, seed)
        for name in names:
            full, drill = DRILLS[name]
            began = time.monotonic()
            found[name] = drill(bench, max(1, round(full * scale)))
            found[name]["seconds"] = round(time.monotonic() - began, 1)
            found[name]["full"] = full
            shown = {k: v for k, v in found[name].items() if k != "failures"}
            print(name, json.dumps(shown), flush=True)
            for failure in found[name].get("failures", []):
                print(f"  {failure}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--only", default=",".join(DRILLS), help="drills, with commas")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and places")
    parser.add_argument("--json", type=Path, default=FOLDER / "drills.json", help="the record")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",")
    if unknown := set(names) - set(DRILLS):
        parser.error(f"--only {', '.join(sorted(unknown))}; the drills are {', '.join(DRILLS)}")
    saved = read("drills") if arguments.json == FOLDER / "drills.json" else None
    found = run(names, arguments.scale, arguments.seed)
    from benchmarks import environment  # starts the device, so after the forks

    record = {
        "command": " ".join(["python -m benchmarks.drills", *argv]),
        "environment": environment.describe(),
        "drills": {**(saved or {}).get("drills", {}), **found},
    }
    arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    lost = sum(len(row.get("failures", [])) for row in found.values())
    print(f"{arguments.json} written; {lost or 'no'} failures")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
