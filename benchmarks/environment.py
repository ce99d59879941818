"""Describes the machine and the versions, for every JSON of a measurement."""

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Prints `describe()`, for a process that must not start JAX itself: it would hold GPU memory.
DESCRIBE = [
    sys.executable,
    "-c",
    "import json; from benchmarks import environment; print(json.dumps(environment.describe()))",
]


def describe() -> dict[str, Any]:
    """Date, processor, device and versions."""
    import jax

    from gptjax.scale import devices

    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "device": devices.describe(),
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "packages": versions,
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
