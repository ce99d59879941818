"""What gptjax runs on, and what is wrong with it: text to paste into a bug report.

    python -m gptjax.commands.doctor [--json]

Nothing here may fail because of what it looks for. So this process imports the standard library
alone; packages are imported, and devices started, in child processes that tell what they find
line by line: one that dies or hangs costs only what was still to come. Exit code 1 if anything
is wrong.
"""

import importlib
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gptjax import __version__
from gptjax.errors import UserError, exit_codes

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
MODULES = ("numpy", "jax", "flax", "optax", "orbax.checkpoint")
MODULES += ("matplotlib", "pooch", "requests", "rich", "tyro")
"""What gptjax cannot do without: pyproject.toml's dependencies."""
EXTRAS = {
    "bpe": ("tiktoken", "tokenizers"),
    "espeak": ("espeakng_loader", "soundfile", "soxr"),
    "evaluate": ("jiwer",),
    "export": ("flatbuffers", "safetensors", "tokenizers"),
    "import": ("safetensors", "tokenizers"),
    "speech": ("soundfile", "soxr"),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "torch": ("torch", "transformers"),
    "wandb": ("wandb",),
}
"""Its extras; those for devices are PLUGINS."""

# Of the environment only what decides how we run: a bug report should hold no secrets.
VARIABLES = re.compile(r"(JAX|XLA|GPTJAX)_\w+|(CUDA|NVIDIA)_VISIBLE_DEVICES|LD_LIBRARY_PATH")
MEMORY_VARIABLES = re.compile(r"XLA_(PYTHON_)?CLIENT_(PREALLOCATE|MEM_FRACTION|ALLOCATOR)")

# What a CUDA version asks for: the driver's major version, the GPU's compute capability.
OLDEST_DRIVER = {"cuda12": 525, "cuda13": 580}
OLDEST_CAPABILITY = {"cuda12": 5.2, "cuda13": 7.5}

# After so many seconds a child is given up: a device that another process holds may never start.
PATIENCE = 180.0

# The vocabulary that sizes are told for: tiny-Shakespeare's characters.
VOCAB_SIZE = 65

Facts = dict[str, Any]


def examine() -> Facts:
    """Everything found, `problems` among it: a line each."""
    gpus, failure = _nvidia()
    facts: Facts = {
        "gptjax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "plugins": {name: found for name in PLUGINS if (found := _version(name))},
        "environment": {k: v for k, v in sorted(os.environ.items()) if VARIABLES.fullmatch(k)},
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "host_memory": _host_memory(),
        "gpus": gpus,
    }
    failures = [failure]
    for probe in (find_modules, find_extras, find_cache, find_devices):
        found, failure = _in_child(probe)
        facts |= found
        failures.append(failure)
    return {**facts, "problems": [line for line in failures if line] + hints(facts)}


# --- what the facts say is wrong


def hints(facts: Facts) -> list[str]:
    """A line for everything that is wrong, with the way to mend it."""
    found = []
    for module, error in facts.get("modules", {}).items():
        if error:
            found.append(f"{module} cannot be imported ({error}); install gptjax anew")
    for extra, modules in facts.get("extras", {}).items():
        for module, error in modules.items():
            if error:
                found.append(
                    f"{module}, of the extra {extra}, is installed but broken ({error}): "
                    f"pip install --force-reinstall -c constraints.txt '.[{extra}]'"
                )
    cache = facts.get("cache")
    if cache and not cache["writable"]:
        found.append(f"the cache {cache['folder']} cannot be written; set GPTJAX_CACHE to a folder")
    return found + _gpu_hints(facts)


def _gpu_hints(facts: Facts) -> list[str]:
    """Driver, plugin and GPU must fit one another; and JAX should use what is there."""
    plugins = {name.split("-")[1]: v for name, v in facts["plugins"].items() if "-cuda" in name}
    gpus, found = facts["gpus"], []
    driver = _number(gpus[0]["driver"]) if gpus else 0
    install = "pip install -c constraints.txt -e '.[{}]'".format
    if gpus and not plugins:
        fits = "cuda13" if driver >= OLDEST_DRIVER["cuda13"] else "cuda12"
        found.append(f"there is an NVIDIA GPU, but JAX has no plugin for it: {install(fits)}")
    if plugins and not gpus and facts.get("backend") != "gpu":
        found.append(
            f"{', '.join(facts['plugins'])} is installed, but there is no NVIDIA driver: install "
            "it; in a container, docker run --gpus all"
        )
    if len(plugins) > 1:
        found.append("plugins of two CUDA versions are installed: pip uninstall one of them")
    jaxlib = facts["packages"]["jaxlib"]
    for cuda, plugin in plugins.items():
        if plugin != jaxlib:
            found.append(f"jax-{cuda}-plugin {plugin} with jaxlib {jaxlib}: {install(cuda)}")
        if gpus and driver < OLDEST_DRIVER[cuda]:
            found.append(
                f"driver {gpus[0]['driver']} is too old for {cuda}, which needs "
                f"{OLDEST_DRIVER[cuda]}: update it{', or ' + install('cuda12')}"
            )
        for gpu in gpus:
            if _number(gpu["capability"]) < OLDEST_CAPABILITY[cuda]:
                found.append(
                    f"{gpu['name']} has compute capability {gpu['capability']}, but {cuda} needs "
                    f"{OLDEST_CAPABILITY[cuda]}: JAX_PLATFORMS=cpu keeps to the CPU"
                )
    if gpus and plugins and facts.get("backend") == "cpu":
        asked = [f"{k}={v}" for k, v in facts["environment"].items() if k == "JAX_PLATFORMS"]
        why = asked[0] + " says so" if asked else "its messages above may say why"
        found.append(f"there is an NVIDIA GPU, but JAX runs on the CPU: {why}")
    return found


# --- what children find, as facts to be merged


def find_modules() -> Iterator[Facts]:
    """{module: why it cannot be imported, or None}."""
    for module in MODULES:
        yield {"modules": {module: _why_not(module)}}


def find_extras() -> Iterator[Facts]:
    """The same for the optional modules that are installed."""
    for extra, modules in EXTRAS.items():
        for module in modules:
            if importlib.util.find_spec(module):
                yield {"extras": {extra: {module: _why_not(module)}}}


def find_cache() -> Iterator[Facts]:
    """The cache of data sets."""
    from gptjax.data import datasets

    folder = datasets.cache()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    writable = os.access(nearest, os.W_OK)
    yield {
        "cache": {
            "folder": str(folder),
            "bytes": sum(sizes),
            "datasets": datasets.cached(),
            "writable": writable,
        }
    }


def find_devices() -> Iterator[Facts]:
    """The devices, what gptjax chooses on them, and how fast they should train."""
    import jax
    import numpy as np

    from gptjax import command_line, config, config_encoders, models
    from gptjax.scale import devices

    try:
        kinds = [d.device_kind for d in jax.devices()]
    except AssertionError:  # JAX has no words for a platform that it was not installed for
        devices.require_backend()
        raise
    yield {"devices": kinds, "backend": jax.default_backend()}
    if stats := jax.devices()[0].memory_stats():
        yield {"device_memory": {k: stats[k] for k in ("bytes_in_use", "bytes_limit")}}
    dtype = devices.compute_dtype(config.TrainConfig())
    matmul_rate = devices.matmul_rate(dtype)
    yield {"dtype": np.dtype(dtype).name, "matmul_rate": matmul_rate}
    for path in sorted(Path("configs").glob("*.py")):
        c = command_line.load_file(path)
        match c.model:
            case config.BigramConfig():
                continue  # a matmul does not tell how fast it looks up
            case config_encoders.EncoderDecoderConfig():
                model = models.EncoderDecoder(c.model, VOCAB_SIZE, VOCAB_SIZE)
            case config_encoders.SpeechConfig():
                model = models.SpeechRecognizer(c.model, VOCAB_SIZE)
            case _:
                assert isinstance(c.model, config.GPTConfig)
                model = models.GPT(c.model, VOCAB_SIZE)
        n_params = models.count(jax.eval_shape(lambda m=model: models.init(m, seed=0)))
        # Pairs and recordings are as long as they are: this is for the longest.
        n_tokens = c.model.block_size
        yield {
            "configs": {
                path.stem: {
                    "parameters": n_params,
                    "micro_batch_size": devices.micro_batch_size(c.train, c.model, n_tokens),
                    "query_chunks": len(devices.query_chunks(n_tokens)),
                    "tokens_per_second": round(devices.training_speed(n_params, matmul_rate)),
                }
            }
        }


def _why_not(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything
        return _in_short(error)
    return None


def tell(probe: str) -> None:
    """In the child: prints a JSON object for every fact as it is found."""
    try:
        for fact in globals()[probe]():
            print(json.dumps(fact), flush=True)
    except Exception as error:
        sys.exit(str(error) if isinstance(error, UserError) else _in_short(error))


def _in_child(probe: Callable[[], Iterator[Facts]]) -> tuple[Facts, str | None]:
    """What a probe finds in a process of its own, and in one line what kept it from the rest."""
    name = probe.__name__
    here = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", f"from gptjax import doctor; doctor.tell({name!r})"]
    child = subprocess.Popen(
        command,
        env=env,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        stdout, stderr = child.communicate(timeout=PATIENCE)
        hangs = False
    except subprocess.TimeoutExpired:
        child.kill()
        stdout, stderr = child.communicate()
        hangs = True
    facts: Facts = {}
    for line in stdout.splitlines():
        try:
            _merge(facts, json.loads(line))
        except (ValueError, AttributeError):
            continue  # somebody else's line
    said = [line[:300] for line in dict.fromkeys(stderr.splitlines()) if line.strip()]
    if probe is find_devices and said:
        facts["messages"] = said[:20]
    if hangs:
        return facts, f"{name} hangs; gave up after {PATIENCE:.0f} s"
    if child.returncode == 0:
        return facts, None
    if child.returncode > 0:
        return facts, f"{name}: {(said or ['no message'])[-1]}"
    # XLA gives its reason in a line of the severity F, before the stack.
    fatal = [line for line in said if re.match(r"F\d{4} ", line)] or said[-1:] or ["no message"]
    return facts, f"{name} dies of {signal.Signals(-child.returncode).name}: {fatal[0]}"


def _merge(into: Facts, new: Facts) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and key in into:
            _merge(into[key], value)
        else:
            into[key] = value


# --- what needs no child


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _number(text: str) -> float:
    """The number that a text begins with; infinite if the driver does not tell ("[N/A]")."""
    found = re.match(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else math.inf


def _in_short(error: Exception) -> str:
    """The error in one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    return next(iter(re.findall(r"^model name\s*: (.*)", text, re.MULTILINE)), platform.machine())


def _host_memory() -> dict[str, int]:
    """Bytes in all and free, both no more than the container may have."""
    text = Path("/proc/meminfo").read_text()
    kib = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    limits = [int(kib["MemTotal"]) << 10]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return {"total": min(limits), "available": min(*limits, int(kib["MemAvailable"]) << 10)}


def _nvidia() -> tuple[list[dict[str, str]], str | None]:
    """The GPUs that the NVIDIA driver knows of, and its complaint if it does not work."""
    if not shutil.which("nvidia-smi"):
        return [], None
    fields = {"name": "name", "driver": "driver_version", "capability": "compute_cap"}
    query = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {_in_short(error)}"
    if done.returncode:
        return [], f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())[:300]}"
    rows = [line.split(", ") for line in done.stdout.strip().splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows], None


# --- in words


def describe(facts: Facts) -> str:
    """The facts as text, a line each."""
    versions = "  ".join(f"{name} {v or 'missing'}" for name, v in facts["packages"].items())
    plugins = "  ".join(f"{name} {v}" for name, v in facts["plugins"].items())
    gpus = [f"{g['name']} (driver {g['driver']}, sm {g['capability']})" for g in facts["gpus"]]
    memory = facts["host_memory"]
    environment = facts["environment"]
    lines = [
        ("gptjax", f"{facts['gptjax']}  python {facts['python']}  {facts['platform']}"),
        ("packages", versions),
        ("plugins", plugins or "none: JAX for the CPU"),
        ("processor", f"{facts['processor']}, {facts['cpus']} cores"),
        ("host memory", f"{_gib(memory['available'])} of {_gib(memory['total'])} free"),
        ("NVIDIA", "; ".join(gpus) or "none"),
    ]
    if kinds := facts.get("devices"):
        each = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
        lines.append(("devices", ", ".join(each)))
    if memory := facts.get("device_memory"):
        used = f"{_gib(memory['bytes_in_use'])} of {_gib(memory['bytes_limit'])} used"
        lines.append(("device memory", f"{used}, of the first"))
    set_here = [f"{k}={v}" for k, v in environment.items() if MEMORY_VARIABLES.fullmatch(k)]
    lines.append(("preallocation", "  ".join(set_here) or "JAX's: 75% of a GPU, none of a CPU"))
    others = [f"{k}={v}" for k, v in environment.items() if not MEMORY_VARIABLES.fullmatch(k)]
    lines.append(("environment", "  ".join(others) or "nothing of JAX, XLA or gptjax is set"))
    if cache := facts.get("cache"):
        content = ", ".join(cache["datasets"]) or "no data set"
        lines.append(("cache", f"{cache['folder']}  {cache['bytes'] / 1e6:,.1f} MB  {content}"))
    extras = facts.get("extras", {})
    # A module that is missing has no entry.
    working = [
        extra
        for extra, names in EXTRAS.items()
        if all(extras.get(extra, {}).get(name, "missing") is None for name in names)
    ]
    lines.append(("extras", f"{' '.join(working) or 'none'}"))
    if "dtype" in facts:
        rate = f"a matmul at {facts['matmul_rate'] / 1e9:,.0f} GFLOP/s"
        lines.append(("computes in", f"{facts['dtype']}, {rate}"))
    for name, of in facts.get("configs", {}).items():
        chunks = f"attention to queries in {of['query_chunks']} parts"
        lines.append(
            (
                name,
                f"{of['parameters']:,} parameters, micro-batches of {of['micro_batch_size']}, "
                f"{chunks}, about {of['tokens_per_second']:,} tokens/s",
            )
        )
    lines += [("JAX says", line) for line in facts.get("messages", [])]
    lines += [("problem", line) for line in facts["problems"]] or [("problems", "none found")]
    return "\n".join(f"{name:<16}{text}" for name, text in lines)


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f} GiB"


def main(argv: list[str]) -> None:
    with exit_codes():
        if argv not in ([], ["--json"]):
            raise UserError("usage: python -m gptjax.commands.doctor [--json]")
        facts = examine()
        text = json.dumps(facts, indent=2) if argv else describe(facts)
        home = os.environ.get("HOME", "/")
        print(text.replace(home, "~") if len(home) > 1 else text)
        sys.exit(1 if facts["problems"] else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
