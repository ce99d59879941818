"""Compiling: kept on disk for the next start, and done side by side before it is needed."""

import contextlib
import os
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import jax
import pooch
from jax.experimental.compilation_cache import compilation_cache

from gptjax.scale import devices

F = TypeVar("F", bound=Callable[..., Any])

# The cache starts only with FREE_BYTES left on the disk, and forgets its oldest programs above
# MOST_BYTES. A program takes some megabytes.
FREE_BYTES, MOST_BYTES = 1 << 30, 2 << 30

TUNING = "xla_gpu_per_fusion_autotune_cache_dir"
"""The flag of XLA, and jax's name of the folder within the cache."""


def use_cache(wanted: bool = True) -> Path | None:
    """Keeps compiled programs on disk. Returns the folder, or None if there is none.

    The folder is `compiled` in the cache of downloads ($GPTJAX_CACHE or the user's). A GPU's tuning
    is kept there, too. Not on a CPU: its programs depend on the processor, and compile in seconds.
    A folder named by $JAX_COMPILATION_CACHE_DIR is used instead, on any device. Never fails: a
    folder that cannot be written is not used.
    """
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if named := jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return Path(named)
    if devices.on_cpu():
        return None
    folder = Path(os.environ.get("GPTJAX_CACHE") or pooch.os_cache("gptjax")) / "compiled"
    if not _is_usable(folder):
        return None
    _forget_oldest(folder)
    # jax warns of every program that it can neither read nor write, but goes on.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_enable_xla_caches", TUNING)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    compilation_cache.reset_cache()  # or a program compiled before would have decided
    return folder


def leave_cache() -> None:
    """From now on programs are neither read from the disk nor kept there."""
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "")


def _is_usable(folder: Path) -> bool:
    """Whether files can be written there, and the disk has room."""
    try:
        for part in (folder, folder / TUNING):
            part.mkdir(parents=True, exist_ok=True)
            probe = part / f"probe-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
        return shutil.disk_usage(folder).free >= FREE_BYTES
    except OSError:
        return False


def _forget_oldest(folder: Path) -> None:
    """Deletes the programs that were compiled first, until MOST_BYTES are left."""
    with contextlib.suppress(OSError):  # another process may be deleting them
        files = [(path, path.stat()) for path in folder.glob("*-cache")]
        files.sort(key=lambda file: file[1].st_mtime, reverse=True)
        total = 0
        for path, stat in files:
            total += stat.st_size
            if total > MOST_BYTES or not stat.st_size:
                path.unlink(missing_ok=True)


class CompileAhead:
    """Compiles programs in threads, side by side, while the caller does something else.

    jax.jit keeps what `lower(...).compile()` made, and a call with arguments of the same shapes
    and shardings uses it. A program that fails here is compiled again by its call, which raises
    the error.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """say: prints the line that tells what was compiled, once all of it is."""
        self._say = say
        self._threads = ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))), "compile")
        self._started = time.perf_counter()
        self._futures: dict[str, list[Future[float]]] = {}

    def add(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> None:
        """Starts to compile what `lower` returns. Several programs may have one name."""

        def compile_() -> float:
            lower().compile()
            return time.perf_counter() - self._started

        self._futures.setdefault(name, []).append(self._threads.submit(compile_))

    def wait(self, name: str) -> None:
        """Until the programs of this name are compiled, or have failed."""
        futures = self._futures.get(name, [])
        wait(futures)
        if any(future.exception() for future in futures):
            leave_cache()  # its disk may be full; the call compiles anew without it
        if self._futures and all(f.done() for fs in self._futures.values() for f in fs):
            if line := self.describe():
                self._say(line)
            self._futures.clear()

    def before_calls(self, name: str, f: F) -> F:
        """`f`, whose calls wait for the programs of this name."""

        def call(*arguments: Any) -> Any:
            self.wait(name)
            return f(*arguments)

        return call  # pyright: ignore[reportReturnType]

    def describe(self) -> str:
        """The programs that are ready, and the seconds until they were; "" if none are."""
        ready = {
            name: max(future.result() for future in futures)
            for name, futures in self._futures.items()
            if all(future.done() and not future.exception() for future in futures)
        }
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in ready.items())
        return parts and f"compiled side by side, seconds: {parts}"

    def close(self) -> None:
        """Drops what has not begun to compile."""
        self._threads.shutdown(wait=False, cancel_futures=True)
