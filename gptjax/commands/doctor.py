"""`gptjax doctor`: versions, devices and installation problems, for a bug report.

This process imports the standard library only. JAX starts in a child process,
so doctor also works where JAX hangs, crashes or is missing. Exit code 1 if
there is a problem.

examples:
    gptjax doctor
    gptjax doctor --json > doctor.json
"""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gptjax import __version__
from gptjax.errors import UserError, exit_codes

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
PACKAGES += ("matplotlib", "pooch", "requests", "rich", "tyro")
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
OLDEST_DRIVER = {"cuda12": 525, "cuda13": 580}
# Only the variables that decide how JAX runs, because a bug report must not contain secrets.
VARIABLES = re.compile(r"(JAX|XLA|GPTJAX)_\w+|(CUDA|NVIDIA)_VISIBLE_DEVICES|LD_LIBRARY_PATH")
# Seconds for the child: a device that another process holds may never start.
TIMEOUT = 180.0

Facts = dict[str, Any]


def main(argv: list[str]) -> None:
    with exit_codes():
        if {"-h", "--help"} & set(argv):
            print(__doc__)
            return
        if argv not in ([], ["--json"]):
            raise UserError("usage: gptjax doctor [--json]")
        facts = examine()
        text = json.dumps(facts, indent=2) if argv else describe(facts)
        home = os.environ.get("HOME", "/")  # a bug report need not contain the user's name
        print(text.replace(home, "~") if len(home) > 1 else text)
        sys.exit(1 if facts["problems"] else 0)


def examine() -> Facts:
    """All facts about this machine; `problems` has a line, with the fix, for each."""
    gpus, nvidia_problem = find_gpus()
    jax_facts, jax_problem = start_jax()
    facts = {
        "gptjax": f"{__version__}, Python {platform.python_version()}, {platform.platform()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "plugins": {name: found for name in PLUGINS if (found := _version(name))},
        "environment": {k: v for k, v in sorted(os.environ.items()) if VARIABLES.fullmatch(k)},
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "nvidia": gpus,
        **jax_facts,
    }
    failures = [problem for problem in (nvidia_problem, jax_problem) if problem]
    return {**facts, "problems": failures + find_problems(facts)}


def find_problems(facts: Facts) -> list[str]:
    """A line, with the fix, for everything in the facts that is wrong."""
    install = "pip install -c constraints.txt -e '.[{}]'".format
    missing = [name for name, installed in facts["packages"].items() if not installed]
    found = [f"{name} is missing: pip install -c constraints.txt -e ." for name in missing]
    cache = facts.get("cache", {"writable": True})
    if not cache["writable"]:
        found.append(f"the cache {cache['folder']} cannot be written; set GPTJAX_CACHE to a folder")
    jaxlib = facts["packages"]["jaxlib"]
    plugins = {name.split("-")[1]: v for name, v in facts["plugins"].items() if "-cuda" in name}
    driver = int(facts["nvidia"][0]["driver"].split(".")[0]) if facts["nvidia"] else 0
    if driver and not plugins:
        fits = "cuda13" if driver >= OLDEST_DRIVER["cuda13"] else "cuda12"
        found.append(f"there is an NVIDIA GPU, but JAX has no plugin for it: {install(fits)}")
    if len(plugins) > 1:
        found.append("plugins of two CUDA versions are installed: pip uninstall one of them")
    if plugins and not driver and facts.get("backend") != "gpu":
        names = ", ".join(facts["plugins"])
        found.append(
            f"{names} is installed, but there is no NVIDIA driver: install it; in a container, "
            "docker run --gpus all"
        )
    for cuda, plugin in plugins.items():
        if plugin != jaxlib:
            found.append(f"jax-{cuda}-plugin {plugin} with jaxlib {jaxlib}: {install(cuda)}")
        if 0 < driver < OLDEST_DRIVER[cuda]:
            oldest = OLDEST_DRIVER[cuda]
            found.append(
                f"driver {driver} is too old for {cuda}, which needs {oldest}: update it, or "
                + install("cuda12")
            )
    if driver and plugins and facts.get("backend") == "cpu":
        platforms = facts["environment"].get("JAX_PLATFORMS")
        why = f"JAX_PLATFORMS={platforms} is set" if platforms else "JAX's messages may say why"
        found.append(f"there is an NVIDIA GPU, but JAX runs on the CPU: {why}")
    return found


def find_gpus() -> tuple[list[dict[str, str]], str | None]:
    """Name and driver of every NVIDIA GPU, and a problem if nvidia-smi does not work."""
    if not shutil.which("nvidia-smi"):
        return [], None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    if done.returncode:
        return [], f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())[:300]}"
    rows = [line.rsplit(", ", 1) for line in done.stdout.strip().splitlines()]
    return [{"name": name, "driver": driver} for name, driver in rows], None


def start_jax() -> tuple[Facts, str | None]:
    """What `probe` finds in a child process, and a problem if it fails."""
    code = "from gptjax.commands import doctor; doctor.probe()"
    path = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[2])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", code]
    try:
        child = subprocess.run(
            command, env=env, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return {}, f"JAX did not start in {TIMEOUT:.0f} s; does another process hold the device?"
    lines = dict.fromkeys(line for line in child.stderr.splitlines() if line.strip())
    messages = [line[:300] for line in lines][:20]
    facts: Facts = {"messages": messages} if messages else {}
    for line in child.stdout.splitlines():
        if line.startswith('{"'):
            facts |= json.loads(line)
    if child.returncode == 0:
        return facts, None
    # XLA gives its reason in a line of severity F, before the stack.
    fatal = [line for line in messages if re.match(r"F\d{4} ", line)] + messages[-1:]
    how = f" ({signal.Signals(-child.returncode).name})" if child.returncode < 0 else ""
    reason = fatal[0].removeprefix("error: ") if fatal else "no message"
    return facts, f"JAX cannot be used{how}: {reason}"


def probe() -> None:
    """In the child: prints facts as JSON, one object a line, as soon as they are known."""
    from gptjax.data import downloads

    folder = downloads.cache()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    cache = {"folder": str(folder), "datasets": downloads.cached()}
    cache |= {"free_gb": round(shutil.disk_usage(existing).free / 1e9, 1)}
    cache |= {"writable": os.access(existing, os.W_OK)}
    print(json.dumps({"cache": cache}), flush=True)

    import jax
    import numpy as np

    from gptjax import models
    from gptjax.config import GPTConfig, TrainConfig
    from gptjax.scale import devices

    with exit_codes():
        devices.require_backend()
        found = {"backend": jax.default_backend(), "devices": devices.describe()}
        print(json.dumps(found), flush=True)
        dtype = devices.compute_dtype(TrainConfig())
        rate = devices.matmul_rate(dtype)
        n_params = models.count(models.shapes(models.GPT(GPTConfig(), 65)))
        found = {"dtype": np.dtype(dtype).name, "matmul_gflops": round(rate / 1e9)}
        found |= {"gpt_tokens_per_second": round(devices.training_speed(n_params, rate))}
        print(json.dumps(found))


def describe(facts: Facts) -> str:
    """The facts as text: a line each, or a line for each entry of a list."""
    lines = []
    for name, fact in facts.items():
        for entry in (fact or ["none"]) if isinstance(fact, list) else [fact]:
            pairs = [f"{k}={v}" for k, v in entry.items()] if isinstance(entry, dict) else [entry]
            lines.append(f"{name:<22}{'  '.join(map(str, pairs)) or 'none'}")
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
