"""Several processes that train one run: how they start, decide, fail and end.

JAX's runtime does the work: jax.distributed connects the processes and sends heartbeats, gloo (on
CPUs) or NCCL (on GPUs) moves arrays, orbax writes one checkpoint for all. Every process runs the
same program. A decision that depends on local facts (the measured speed, a signal) is made with
`all_reduce_max`: if the processes decided differently, their collectives would wait forever.
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
from jax._src import distributed  # no public function tells which processes are alive
from jax.experimental import multihost_utils

from gptjax import signals
from gptjax.errors import Interrupted, TrainingDiverged, UserError, exit_codes
from gptjax.scale import devices

# A process without a heartbeat for this long counts as dead.
HEARTBEAT_SECONDS = 12
# Process 0, which runs the coordination service, counts as dead after this time without an answer.
# Less than the above: else JAX ends the others before they can print which process was lost.
ANSWER_SECONDS = 8
# How long a process waits for the others to start.
START_SECONDS = 300

_ended = threading.Event()
"""The run is over on every process: from now on a process that leaves is not lost."""
_one_at_a_time = threading.Lock()


def is_first() -> bool:
    """Whether this is process 0, which alone prints, plots and writes files besides checkpoints."""
    return distributed.global_state.process_id == 0  # jax.process_index would start the device


def several() -> bool:
    """Whether this process is one of several."""
    return distributed.global_state.num_processes > 1


def all_reduce_max(*values: float) -> tuple[float, ...]:
    """Element-wise maximum over processes. Collective: call it on every process."""
    if not several():
        return values
    every_PN = multihost_utils.process_allgather(np.array(values, np.float32))
    return tuple(np.asarray(every_PN).max(0).tolist())


def barrier(name: str) -> None:
    """Returns when every process has called it. Collective. name: the same on every process."""
    if several():
        multihost_utils.sync_global_devices(name)


def check_same(name: str, fields: dict[str, Any]) -> None:
    """Raises UserError if another process has a different value of a field. Collective.

    Processes with different options wait for each other forever, or train a model that no
    config.json describes. name: of this check, the same on every process.
    """
    if not several():
        return
    client, me = distributed.global_state.client, distributed.global_state.process_id
    assert client is not None
    ours = {field: str(value) for field, value in fields.items()}
    key = f"gptjax/{name}"
    client.key_value_set(f"{key}/{me}", json.dumps(ours))
    for process in range(distributed.global_state.num_processes):
        theirs = client.blocking_key_value_get(f"{key}/{process}", START_SECONDS * 1000)
        theirs = json.loads(theirs)
        for field in ours | theirs:  # another version of gptjax may have other fields
            if theirs.get(field) != ours.get(field):
                raise UserError(
                    f"process {process} has {field} {theirs.get(field)}, process {me} has "
                    f"{ours.get(field)}; start all with the same options and the same gptjax"
                )


def in_cluster() -> bool:
    """Whether Slurm, Open MPI or Kubernetes started this process as one of several."""
    sizes = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    in_pod = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(os.environ)
    return in_pod or any(size.isdecimal() and int(size) > 1 for size in sizes)


@contextlib.contextmanager
def distributed_session(coordinator: str, n_processes: int, process: int) -> Iterator[None]:
    """Connects this process with the others, if there are any, for the length of the block.

    The block must be the last thing that a program does: all processes but the first exit at its
    end. A process that fails exits at once with the code of its error, and the others exit when
    its heartbeats stop. Raises UserError if the processes do not find each other.
    """
    if not (coordinator or in_cluster()):
        yield
        return
    interrupted = None
    try:
        _start(coordinator, n_processes, process)
        devices.require_backend()
        here = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
        check_same("devices", {"devices": here})  # JAX needs the same number on each process
        yield
    except Interrupted as interrupt:  # on all processes, at the same step
        interrupted = interrupt
    except BaseException as error:
        _end(error)
    try:
        barrier("the end")
    except BaseException as error:
        _end(error)
    _ended.set()
    if not is_first():
        _exit(128 + interrupted.signum if interrupted else 0)
    # Process 0 leaves last. If it left first, the others would report it as lost.
    time.sleep(1)
    jax.distributed.shutdown()
    if interrupted:
        raise interrupted


def _start(coordinator: str, n_processes: int, process: int) -> None:
    # JAX's handler of SIGTERM would replace StopSignal, which informs the other processes.
    jax.config.update("jax_enable_preemption_service", False)
    # Without this, JAX aborts before _watch_all can print which process was lost.
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
        if host == "localhost" or host.startswith("127."):  # by default it binds every address
            explicit["coordinator_bind_address"] = coordinator
    where = f"at {coordinator}" if coordinator else "at the address from the cluster"
    print(f"waiting for the other processes {where}", file=sys.stderr, flush=True)
    alone = f"the processes do not find each other {where}"
    fix = (
        "give all of them the same --coordinator HOST:PORT and --processes, and each its --process"
    )

    def print_timeout() -> None:  # JAX's runtime aborts if the others do not start
        print(f"error: {alone} within {START_SECONDS} s; {fix}", file=sys.stderr, flush=True)
        os._exit(2)

    _on_abort(print_timeout)
    # A signal ends the process here: there is nothing to save yet, and initialize() blocks, so a
    # Python handler would not run.
    both = (signal.SIGTERM, signal.SIGINT)
    before = {s: signal.signal(s, signal.SIG_DFL) for s in both if not signals.ends_at_once(s)}
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
        _report_loss_on_abort()
    if not is_first():
        threading.Thread(target=_watch_process_0, daemon=True).start()


def _watch_all() -> None:
    """Ends this process when another one is lost: no collective with it will ever return."""
    # Not of jax.process_count, which starts the device, and that waits for the others.
    client, everyone = (
        distributed.global_state.client,
        range(distributed.global_state.num_processes),
    )
    assert client is not None
    while not _ended.is_set():
        try:
            # Returns when every process has called it or been dead for HEARTBEAT_SECONDS.
            alive = client.get_live_nodes([*everyone])
        except Exception:  # process 0, which should answer, is lost
            alive = [process for process in everyone if is_first() or process]
        if lost := [process for process in everyone if process not in alive]:
            _exit_after_loss(lost)
        time.sleep(1)


def _watch_process_0() -> None:
    """Ends this process when process 0 still runs but does not answer."""
    client = distributed.global_state.client
    assert client is not None
    executor = concurrent.futures.ThreadPoolExecutor(1)
    while not _ended.is_set():
        answer = executor.submit(client.key_value_try_get, "anything")
        try:
            answer.exception(ANSWER_SECONDS)  # "no such key" is an answer as well
        except concurrent.futures.TimeoutError:
            _exit_after_loss([0])
        time.sleep(1)


def _report_loss_on_abort() -> None:
    """Prints one line when JAX's runtime aborts because another process has exited or hangs."""
    host, _, port = (distributed.global_state.coordinator_address or "").rpartition(":")

    def report() -> None:
        if _ended.is_set():
            os._exit(0)
        try:
            # A server greets at once. A stopped process only accepts, and recv times out.
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2) as connection:
                connection.recv(1)
        except OSError:
            _exit_after_loss([0])
        # A collective may break off before _watch_all knows why: let it find and name the lost
        # process. If it finds none, the abort has another reason, which JAX has printed.
        time.sleep(2 * HEARTBEAT_SECONDS)
        first = "error: the runtime of JAX ended process"
        print(f"{first} {distributed.global_state.process_id}; see above", file=sys.stderr)
        os._exit(1)

    _on_abort(report)


def _on_abort(function: Callable[[], None] | None) -> None:
    """Sets the function that runs when JAX's runtime calls abort(). None removes it.

    The runtime aborts in a thread of its own, where handlers of the signal module do not run.
    """
    global _handler
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda signum: function() if function else None)
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


_handler: object = None
"""C holds the address of this function, so it must not be garbage-collected."""


def _exit_after_loss(lost: list[int]) -> None:
    """Prints who is lost and exits. Returns if the run is over, where others may leave."""
    with _one_at_a_time:  # several threads find out
        if _ended.is_set():
            return
        state = distributed.global_state
        names = ", ".join(map(str, lost))
        print(
            f"error: process {state.process_id} lost process {names} of {state.num_processes}, "
            "which ended or hangs (see its output); start all processes again, and they continue "
            "from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def _end(error: BaseException) -> None:
    """Prints the error and exits, even if a collective still waits."""
    ours = UserError | TrainingDiverged | Interrupted | KeyboardInterrupt | SystemExit
    if several() and not isinstance(error, ours):
        # Probably a collective or a save broke because a process was lost. _watch_all then exits
        # with a better message while we wait here.
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
    """Exits without waiting for the other processes, as sys.exit would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
