"""What to measure on a GPU when time is short: parts in order of worth, each with a limit.

    python -m benchmarks.gpu --out OUT --seconds 460    # leaves out what does not fit
    python -m benchmarks.gpu --out OUT --only race,startup
    JAX_PLATFORMS=cpu python -m benchmarks.gpu --out OUT --tiny    # tries the script on a CPU

    race      milliseconds per step of configs/gpt.py against PyTorch's best, dropout 0.2 and 0
    startup   train.py with an empty and with a filled compilation cache: seconds to the first
              evaluation and to the first training steps
    fast      configs/gpt_fast.py until val_loss 1.4994: steps and seconds
    best      val_loss of configs/gpt_best.py, three seeds side by side
    sampling  tokens per second at batch 1 and 32
    gpt2      a step of configs/gpt2_124m.py with random tokens against compiled PyTorch
    int8      decoding with quantized weights
    g2p, digits   trained whole, error rates (digits: FSDD=FOLDER with recordings, or fetched)

Competitors start, and compile, at once; then they are measured in turns. Every part writes its JSON
as soon as it is measured, and prints one line per figure. The text is that of $GPTJAX_CACHE.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import race, rounds
from benchmarks.environment import DESCRIBE
from gptjax import config_json
from gptjax.config import Config, GPTConfig
from gptjax.config_files import load_file
from gptjax.data import downloads

ORIGINAL_BEST = 1.4994
"""The lowest validation loss that the original PyTorch project logged, on sampled batches."""
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12}
"""Dense bfloat16, of the data sheets (SXM)."""
GPT2_BATCH = 16
SEEDS = (1, 2, 3)
POLL = 0.02

# name, style, compile mode: PyTorch's two best of docs/benchmarks/h100-2026-11-26.
RIVALS = [
    ("PyTorch, tuned, compiled", "tuned", "default"),
    ("PyTorch, tuned, CUDA graphs", "tuned", "reduce-overhead"),
]
TINY_MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32}
TINY_TRAIN = ["--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "32"]
TINY_TRAIN += ["--model.block-size", "32", "--train.batch-size", "4", "--train.max-steps", "40"]


class Part(NamedTuple):
    measure: Callable[["Session"], None]
    limit: float
    """Seconds after which it is stopped."""
    least: float
    """It does not begin with fewer seconds left."""


class Session:
    """One run of this script."""

    def __init__(self, out: Path, seconds: float, tiny: bool) -> None:
        self.out, self.tiny = out, tiny
        self.started = time.perf_counter()
        self.end = self.started + seconds
        self.deadline = self.end
        """Of the part that is being measured."""
        self.work = Path(tempfile.mkdtemp(prefix="gptjax-gpu-"))
        self.children: list[subprocess.Popen[str]] = []
        self._describing = subprocess.Popen(
            DESCRIBE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | rounds.CHILD,
        )
        self._environment: dict[str, Any] | None = None

    def environment(self) -> dict[str, Any]:
        """Device, versions, date, and the commit where git knows it."""
        if self._environment is None:
            printed, _ = self._describing.communicate()
            self._environment = json.loads(printed.splitlines()[-1])
            # COMMIT first: a copied working tree may have another HEAD than its files.
            commit = os.environ.get("COMMIT", "")
            if not commit:
                with contextlib.suppress(OSError):
                    git = ["git", "rev-parse", "--short", "HEAD"]
                    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
            self._environment["commit"] = commit
        return self._environment

    def save(self, name: str, **record: Any) -> None:
        command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
        record |= {"environment": self.environment(), "command": command}
        text = json.dumps(record, indent=1) + "\n"
        (self.out / f"{name}.json").write_text(text)

    def say(self, line: str) -> None:
        print(f"{time.perf_counter() - self.started:6.1f} s  {line}", flush=True)

    def start(self, command: list[str], log: Path, **environment: str) -> subprocess.Popen[str]:
        """A process that prints to `log`; it is ended with this script at the latest."""
        with open(log, "w") as file:
            child = subprocess.Popen(
                [sys.executable, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | rounds.CHILD | environment,
            )
        self.children.append(child)
        return child

    def train(
        self, name: str, config: str, *options: str, **environment: str
    ) -> subprocess.Popen[str]:
        command = ["train.py", "--config", f"configs/{config}.py", *options]
        command += TINY_TRAIN if self.tiny else []
        command += ["--run-dir", str(self.work / name)]
        return self.start(command, self.work / f"{name}.txt", **environment)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far, without a line that is being written."""
        path = self.work / name / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def finish(self, child: subprocess.Popen[str], name: str) -> bool:
        """Waits for the end, or ends it at the deadline; returns whether it ended well itself."""
        in_time = True
        try:
            child.wait(max(0.1, self.deadline - time.perf_counter()))
        except subprocess.TimeoutExpired:
            in_time = False
            self.stop(child)
        if in_time and child.returncode:
            log = (self.work / f"{name}.txt").read_text().strip().splitlines()
            self.say(f"{name} failed: {log[-1] if log else child.returncode}")
        return in_time and not child.returncode

    def stop(self, child: subprocess.Popen[str]) -> None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(4)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def close(self) -> None:
        for child in [*self.children, self._describing]:
            if child.poll() is None:
                child.kill()
                child.wait()
        if self._describing.stdout:
            self._describing.stdout.close()
        shutil.rmtree(self.work, ignore_errors=True)


def config_of(session: Session, name: str, **model: Any) -> Config:
    config = load_file(Path(f"configs/{name}.py"))
    train = config.train
    if session.tiny:
        model |= TINY_MODEL
        train = dataclasses.replace(train, batch_size=4, micro_batch_size=0)
    gpt = dataclasses.replace(config.model, **model)
    return dataclasses.replace(config, model=gpt, train=train)


def competitors(session: Session, config: Config, **fields: Any) -> list[dict[str, Any]]:
    """gptjax and PyTorch's best, for benchmarks.race."""
    dtype, suffix = ("float32", "") if session.tiny else ("bfloat16", " bfloat16")
    shared = {"dtype": dtype, "config": config_json.to_json(config), **fields}
    made = [{"name": f"gptjax{suffix}", "side": "gptjax", "style": "", "mode": None, **shared}]
    for name, style, mode in RIVALS:
        rival = {"side": "torch", "style": style, "mode": None if session.tiny else mode}
        made.append({"name": f"{name}{', bfloat16' * bool(suffix)}", **rival, **shared})
    return made


def measure_race(session: Session) -> None:
    by_dropout = {d: config_of(session, "gpt", dropout=d) for d in (0.2, 0.0)}
    racers = [(d, c) for d, config in by_dropout.items() for c in competitors(session, config)]
    n_rounds = 1 if session.tiny else 9
    rows = rounds.race("benchmarks.race", [c for _, c in racers], n_rounds, True, session.deadline)
    races: list[dict[str, Any]] = [{"dropout": d, "rows": []} for d in by_dropout]
    for (dropout, _), row in zip(racers, rows, strict=True):
        next(r for r in races if r["dropout"] == dropout)["rows"].append(row)
    save_race(session, "race-gpt-gpu", by_dropout[0.2], races, vocab_size=65)


def save_race(
    session: Session, name: str, config: Config, races: list[dict[str, Any]], vocab_size: int
) -> None:
    assert isinstance(config.model, GPTConfig)
    flops = race.flops_per_token(config.model, vocab_size)
    text = json.loads(config_json.to_json(config))
    session.save(name, config=text, flops_per_token=flops, races=races)
    tokens = config.train.batch_size * config.model.block_size
    peak = peak_flops(session.environment()["device"])
    for one in races:
        for row in one["rows"]:
            of = f"{name} dropout {one['dropout']:g}  {row['name']}"
            if "error" in row:
                session.say(f"{of}: failed: {row['error'][:300]}")
                continue
            mfu = f"  MFU {flops * tokens / row['median'] / peak:.1%}" if peak else ""
            session.say(
                f"{of}: {1e3 * row['median']:.3f} ms/step ({1e3 * row['least']:.3f} to "
                f"{1e3 * row['most']:.3f}, {len(row['seconds_per_unit'])} rounds)  compiling "
                f"{row['compile_seconds']:.1f} s  peak {row['peak_bytes'] / 2**20:.0f} MiB{mfu}"
            )
        session.say(f"{name} dropout {one['dropout']:g}: {race.verdict(one)}")


def peak_flops(device: str) -> float | None:
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)


def measure_startup(session: Session) -> None:
    cache = session.work / "cache"
    cache.mkdir()
    text = downloads.fetch("tinyshakespeare")
    (cache / text.name).symlink_to(text.resolve())
    record: dict[str, Any] = {}
    for name in ("cold", "warm"):
        record[name] = timed_start(session, name, cache)
        if "failed" in record[name]:
            break
        session.save("gpu-startup", **record)
    compiled = [path for path in cache.rglob("*") if path.is_file()]
    session.say(
        f"startup cache: {len(compiled)} files, {sum(p.stat().st_size for p in compiled):,} bytes"
    )


def timed_start(session: Session, name: str, cache: Path) -> dict[str, Any]:
    """Seconds of one start, from its metrics and from the lines that it prints."""
    lines: list[tuple[float, str]] = []
    seconds: dict[str, float] = {}
    command = ["train.py", "--config", "configs/gpt.py", "--train.max-steps", "200"]
    command += TINY_TRAIN if session.tiny else []
    command += ["--run-dir", str(session.work / name)]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"GPTJAX_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    session.children.append(child)
    assert child.stdout is not None
    output = child.stdout

    def read() -> None:
        for line in output:
            lines.append((round(time.perf_counter() - start, 2), line.rstrip()[:200]))

    reader = threading.Thread(target=read)
    reader.start()
    first = {"first_evaluation": "val_loss", "first_training_steps": "train_loss"}
    while child.poll() is None:
        now = time.perf_counter()
        rows = session.rows(name)
        for what, field in first.items():
            if what not in seconds and any(field in row for row in rows):
                seconds[what] = round(now - start, 2)
        if now > session.deadline:
            session.stop(child)
        time.sleep(POLL)
    seconds["end"] = round(time.perf_counter() - start, 2)
    reader.join()
    output.close()
    figures = ", ".join(f"{what.replace('_', ' ')} {s:.1f} s" for what, s in seconds.items())
    session.say(f"startup {name}: {figures}")
    for when, line in lines:
        if "compiled" in line:
            session.say(f"startup {name}, after {when:.1f} s: {line}")
    record = {**seconds, "steps": 200, "output": lines}
    if child.returncode:
        session.say(f"startup {name} failed: {lines[-1] if lines else child.returncode}")
        record["failed"] = child.returncode
    return record


def measure_fast(session: Session) -> None:
    options = ["--train.eval-interval", "20", "--train.log-interval", "20"]
    options += ["--train.eval-batches", "0", "--train.sample-tokens", "0"]
    # The steps are timed apart: the run below saves a checkpoint every 20 steps.
    racers = [
        competitors(session, changed)[0] | {"name": name}
        for name, changed in fast_variations(config_of(session, "gpt_fast")).items()
    ]
    n_rounds = 1 if session.tiny else 5
    variations = rounds.race("benchmarks.race", racers, n_rounds, True, session.deadline)
    session.save("gpu-fast-steps", rows=variations)
    for row in variations:
        figure = row.get("error") or f"{1e3 * row['median']:.3f} ms/step"
        session.say(f"fast, {row['name']}: {figure[:300]}")
    ms = None if "error" in variations[0] else 1e3 * variations[0]["median"]
    child = session.train("fast", "gpt_fast", *options)
    complete = session.finish(child, "fast")
    rows = session.rows("fast")
    losses = [(r["step"], r["seconds"], r["val_loss"]) for r in rows if "val_loss" in r]
    passed = next(((s, wall) for s, wall, loss in losses if loss <= ORIGINAL_BEST), None)
    session.save(
        "gpu-fast",
        target=ORIGINAL_BEST,
        ms_per_step=ms,
        passed=passed and {"step": passed[0], "seconds_with_evaluations": passed[1]},
        losses=losses,
        complete=complete,
    )
    session.say("fast: " + "  ".join(f"{step}: {loss:.4f}" for step, _, loss in losses))
    if ms:
        session.say(f"fast: {ms:.3f} ms/step")
    if passed and ms:
        session.say(
            f"fast: val_loss <= {ORIGINAL_BEST} at step {passed[0]}, {passed[0] * ms / 1e3:.2f} s "
            f"of steps, {passed[1]:.1f} s since the run began"
        )
    else:
        session.say(f"fast: {ORIGINAL_BEST} not reached")


def fast_variations(config: Config) -> dict[str, Config]:
    """configs/gpt_fast.py, and what it would be otherwise; steps of each are timed."""

    def changed(batch_size: int, **model: Any) -> Config:
        assert isinstance(config.model, GPTConfig)
        train = dataclasses.replace(config.train, batch_size=batch_size)
        return dataclasses.replace(
            config, model=dataclasses.replace(config.model, **model), train=train
        )

    return {
        "batches of 32": config,
        "batches of 48": changed(48),
        "batches of 48, 4 heads ahead": changed(48, predict_ahead=4),
        "batches of 64": changed(64),
        "batches of 64, dropout of attention weights": changed(64, drop_attention=True),
    }


def measure_best(session: Session) -> None:
    options = ["--train.eval-batches", "0", "--train.sample-tokens", "0"]
    children = {
        seed: session.train(f"best-{seed}", "gpt_best", "--seed", str(seed), *options)
        for seed in SEEDS
    }
    complete = {seed: session.finish(child, f"best-{seed}") for seed, child in children.items()}
    runs = []
    for seed in SEEDS:
        rows = [r for r in session.rows(f"best-{seed}") if "val_loss" in r]
        losses = [(r["step"], r["val_loss"]) for r in rows]
        runs.append({"seed": seed, "complete": complete[seed], "losses": losses})
        said = "  ".join(f"{step}: {loss:.4f}" for step, loss in losses)
        session.say(f"best seed {seed}{'' if complete[seed] else ' (not complete)'}: {said}")
    session.save("gpu-best", runs=runs)
    lowest = [min(loss for _, loss in run["losses"]) for run in runs if run["losses"]]
    if lowest:
        session.say(f"best: lowest val_loss {', '.join(f'{loss:.4f}' for loss in lowest)}")


def measure_sampling(session: Session) -> None:
    config = config_of(session, "gpt")
    n_tokens = config.model.block_size - 1
    sides = {"gptjax": "gptjax, KV cache", "transformers": "Hugging Face GPT-2, KV cache"}
    racers = [
        {
            "name": name,
            "side": side,
            "batch_size": batch_size,
            "tokens": n_tokens,
            "config": config_json.to_json(config),
        }
        for batch_size in (1, 32)
        for side, name in sides.items()
    ]
    n_rounds = 1 if session.tiny else 5
    rows = rounds.race("benchmarks.decode", racers, n_rounds, True, session.deadline)
    races: list[dict[str, Any]] = [
        {"batch_size": 1, "rows": rows[:2]},
        {"batch_size": 32, "rows": rows[2:]},
    ]
    text = json.loads(config_json.to_json(config))
    session.save("decode-gpu", config=text, tokens=n_tokens, races=races)
    for one in races:
        for row in one["rows"]:
            of = f"sampling batch {one['batch_size']}  {row['name']}"
            if "error" in row:
                session.say(f"{of}: failed: {row['error'][:300]}")
            else:
                rate = one["batch_size"] * n_tokens / row["median"]
                session.say(f"{of}: {rate:,.0f} tokens/s  compiling {row['compile_seconds']:.1f} s")


def measure_gpt2(session: Session) -> None:
    vocab_size = 100 if session.tiny else 50_257
    config = config_of(session, "gpt2_124m")
    if not session.tiny:
        train = dataclasses.replace(
            config.train, batch_size=GPT2_BATCH, micro_batch_size=GPT2_BATCH
        )
        config = dataclasses.replace(config, train=train)
    racers = competitors(session, config, vocab_size=vocab_size)[:2]
    n_rounds = 1 if session.tiny else 5
    rows = rounds.race("benchmarks.race", racers, n_rounds, True, session.deadline)
    races = [{"dropout": 0.0, "rows": rows}]
    save_race(session, "race-gpt2-gpu", config, races, vocab_size)


def measure_int8(session: Session) -> None:
    tag, sizes = ("tiny", ["tiny"]) if session.tiny else ("gpu", ["seed", "gpt2"])
    command = ["-m", "benchmarks.quant", "decode", *sizes, "--tag", tag]
    child = session.start(command, session.work / "int8.txt", OUT=str(session.out))
    session.finish(child, "int8")
    for size in sizes:
        path = session.out / f"quant-{size}-{tag}.json"
        for row in json.loads(path.read_text())["rows"] if path.exists() else []:
            rates = f"{row['tokens_per_second_1']:,.0f} and {row['tokens_per_second_32']:,.0f}"
            session.say(f"int8 {size}  {row['format']}: {rates} tokens/s at batch 1 and 32")


def measure_tasks(session: Session, *names: str) -> None:
    """Trainings of benchmarks.expected, side by side: only their error rates count."""
    suffix = "_debug" if session.tiny else ""
    children = {}
    for name in names:
        command = ["-m", "benchmarks.expected", f"{name}{suffix}"]
        log = session.work / f"{name}.txt"
        children[name] = session.start(command, log, OUT=str(session.out))
    for name, child in children.items():
        session.finish(child, name)
        path = session.out / f"expected-{name}{suffix}.json"
        if path.exists():
            record = json.loads(path.read_text())
            tests = {key: of for key, of in record.items() if key.startswith("test")}
            session.say(f"{name}: val_loss {record['val_loss']:.4f}  {json.dumps(tests)[:600]}")
        else:
            session.say(f"{name}: not finished")


def measure_g2p(session: Session) -> None:
    measure_tasks(session, "g2p")


def measure_digits(session: Session) -> None:
    measure_tasks(session, "digits")


PARTS = {
    "race": Part(measure_race, 150, 90),
    "startup": Part(measure_startup, 90, 40),
    "fast": Part(measure_fast, 100, 60),
    "best": Part(measure_best, 220, 70),
    "sampling": Part(measure_sampling, 75, 45),
    "gpt2": Part(measure_gpt2, 110, 75),
    "int8": Part(measure_int8, 120, 60),
    "g2p": Part(measure_g2p, 300, 120),
    "digits": Part(measure_digits, 300, 120),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--seconds", type=float, default=460, help="all has ended by then")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"--only {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rounds.SECONDS_PER_TURN = 0.05 if arguments.tiny else 1.0
    session = Session(arguments.out, arguments.seconds, arguments.tiny)
    try:
        for name in names:
            part, now = PARTS[name], time.perf_counter()
            if session.end - now < (0 if arguments.tiny else part.least):
                session.say(f"{name}: left out, {session.end - now:.0f} s are left")
                continue
            session.deadline = min(now + part.limit, session.end - 8)
            session.say(f"{name} begins")
            try:
                part.measure(session)
            except Exception as error:  # the other parts shall still be measured
                session.say(f"{name} failed: {error!r}"[:600])
            session.say(f"{name} took {time.perf_counter() - now:.1f} s")
    finally:
        session.close()


if __name__ == "__main__":
    main()
