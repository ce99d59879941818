"""Several processes that train one run together: how they start, agree and fail.

JAX's own runtime does the work: jax.distributed finds the others and watches that they are alive,
gloo (on CPUs) or NCCL (on GPUs) moves arrays, orbax writes one checkpoint of all. Every process
runs the same program; whatever it decides by itself (how long a dispatch may be, whether a signal
came) it asks the others about first, or their collectives would no longer meet.
"""

import concurrent.futures
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # nothing public says who is alive
from jax.experimental import multihost_utils

from gptjax.errors import Interrupted, UserError, exit_codes
from gptjax.scale import devices

# A process that was not heard of for so long is dead to the others; process 0, which they ask
# about one another, a little sooner, or JAX would end them before they can say why.
HEARTBEAT_SECONDS, ANSWER_SECONDS = 12, 8
# How long a process waits for the others to start.
START_SECONDS = 300


def is_first() -> bool:
    """Whether this process prints, plots and writes what is not a checkpoint."""
    return distributed.global_state.process_id == 0  # jax.process_index would start the device


def several() -> bool:
    return distributed.global_state.num_processes > 1


def all_reduce_max(*values: float) -> tuple[float, ...]:
    """The largest of what each process says, for every value; all have to ask."""
    if not several():
        return values
    every_PN = multihost_utils.process_allgather(np.array(values, np.float32))
    return tuple(np.asarray(every_PN).max(0).tolist())


def barrier(what: str) -> None:
    """Returns when every process is here."""
    if several():
        multihost_utils.sync_global_devices(what)


def check_same(what: str, knobs: dict[str, Any]) -> None:
    """Raises UserError where another process has other knobs, of a kind; all have to ask.

    They would wait for each other forever, or train a model that neither of them describes.
    """
    if not several():
        return
    client, me = distributed.global_state.client, distributed.global_state.process_id
    assert client is not None
    ours = {name: str(value) for name, value in knobs.items()}
    key = f"gptjax/{what}"
    client.key_value_set(f"{key}/{me}", json.dumps(ours))
    for process in range(distributed.global_state.num_processes):
        theirs = client.blocking_key_value_get(f"{key}/{process}", START_SECONDS * 1000)
        theirs = json.loads(theirs)
        for name in ours:
            if theirs[name] != ours[name]:
                raise UserError(
                    f"process {process} has {name} {theirs[name]}, process {me} has {ours[name]}; "
                    "start all of them alike"
                )


def in_cluster() -> bool:
    """Whether Slurm, Open MPI or Kubernetes started this process as one of several."""
    sizes = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    in_pod = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(os.environ)
    return in_pod or any(size.isdecimal() and int(size) > 1 for size in sizes)


@contextlib.contextmanager
def distributed_session(coordinator: str, n_processes: int, process: int) -> Iterator[None]:
    """Joins the other processes, if there are any, and leaves them: the last thing a program does.

    All but the first end in here. A process that fails ends at once, with the exit code of its
    error and without waiting for the others, which cannot come; they end when they miss it.
    Raises UserError when it cannot start.
    """
    if not (coordinator or in_cluster()):
        yield
        return
    _start(coordinator, n_processes, process)
    interrupted = None
    try:
        devices.require_backend()
        here = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
        check_same("devices", {"devices": here})  # JAX wants as many of each
        yield
    except Interrupted as interrupt:  # all of them, at the same step
        interrupted = interrupt
    except BaseException as error:
        _end(error)
    barrier("the end")
    if not is_first():
        _exit(128 + interrupted.signum if interrupted else 0)
    time.sleep(1)  # process 0 leaves last: those whose connection to it breaks would call it lost
    jax.distributed.shutdown()
    if interrupted:
        raise interrupted


def _start(coordinator: str, n_processes: int, process: int) -> None:
    # Its handler of SIGTERM would replace ours, which tells the others by `all_reduce_max`.
    jax.config.update("jax_enable_preemption_service", False)
    # Else JAX aborts at once where a process is missed, and our _watch could not say which one.
    jax.config.update("jax_enable_recoverability", True)
    explicit = {}
    if coordinator:
        host = coordinator.rpartition(":")[0]
        explicit = {
            "coordinator_address": coordinator,
            "num_processes": n_processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
        if host == "localhost" or host.startswith("127."):  # else to every address of the machine
            explicit["coordinator_bind_address"] = coordinator
    where = f"at {coordinator}" if coordinator else "as the cluster says"
    print(f"waiting for the other processes, {where}", file=sys.stderr, flush=True)
    alone = f"the processes do not find one another, {where}"
    fix = "give all of them the same --coordinator HOST:PORT, and --processes, and each "
    fix += "its --process"

    def last_words() -> None:  # JAX's runtime aborts where nobody comes
        print(f"error: {alone}, within {START_SECONDS} s; {fix}", file=sys.stderr, flush=True)
        os._exit(2)

    _on_abort(last_words)
    # There is nothing to save yet, and no Python runs that could hear a signal.
    before = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=START_SECONDS,
            **explicit,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{alone} ({error}); {fix}") from None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _on_abort(None)
    if several():
        threading.Thread(target=_watch_all, daemon=True).start()
    if not is_first():
        threading.Thread(target=_watch_process_0, daemon=True).start()
        _say_if_process_0_is_gone()


def _watch_all() -> None:
    """Ends this process when another one is gone: no collective with it will ever return."""
    client, everyone = distributed.global_state.client, range(jax.process_count())
    assert client is not None
    with contextlib.suppress(Exception):  # the run has ended, or process 0 has
        while True:
            # Returns when all have asked, or else have been dead for HEARTBEAT_SECONDS.
            alive = client.get_live_nodes([*everyone])
            if gone := [process for process in everyone if process not in alive]:
                _lost(gone)
            time.sleep(1)


def _watch_process_0() -> None:
    """Ends this process when the one that answers for all is there, but does not answer."""
    client = distributed.global_state.client
    assert client is not None
    asking = concurrent.futures.ThreadPoolExecutor(1)
    while True:
        answer = asking.submit(client.key_value_try_get, "anything")
        try:
            answer.exception(ANSWER_SECONDS)  # that there is no such key is an answer
        except concurrent.futures.TimeoutError:
            _lost([0])
        time.sleep(1)


def _say_if_process_0_is_gone() -> None:
    """Has JAX's runtime, which aborts without process 0, say so in a line."""
    host, _, port = (distributed.global_state.coordinator_address or "").rpartition(":")

    def last_words() -> None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
        except OSError:
            _lost([0])  # else something else is wrong: back to abort()

    _on_abort(last_words)


def _on_abort(last_words: Callable[[], None] | None) -> None:
    """Calls a function where JAX's runtime calls abort(), or none.

    It does so in a thread of its own, where Python's own signal handlers never run.
    """
    global _handler
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(
        lambda signum: last_words() if last_words else None
    )
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


_handler: object = None
"""What C has the address of must stay in memory."""


def _lost(gone: list[int]) -> NoReturn:
    names = ", ".join(map(str, gone))
    print(
        f"error: process {jax.process_index()} lost process {names} of {jax.process_count()}, "
        "which ended or hangs (see what it printed); start all of them again, and they continue "
        "from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _end(error: BaseException) -> None:
    """Says what is wrong and ends this process, in spite of collectives that still wait."""
    if several() and isinstance(error, jax.errors.JaxRuntimeError):
        # A collective that broke, perhaps: then _watch_all soon knows who is gone, and ends us.
        time.sleep(2 * ANSWER_SECONDS)
    code = 1
    try:
        with exit_codes():
            raise error
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception:
        traceback.print_exc()
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Ends this process without asking the others, which sys.exit would wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
