"""What happens on a worker: a stage's own command, and its end wherever the worker or the coordinator ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from feature_survival.timeline import WORKER

FOLDER = Path(".dvc") / "tmp" / "grid"  # under the checkout: what stages said; the journal
# The stage, and beside it a watch: its pipe closes when the worker ends, however that dies, and so does the stage.
GUARD = 'exec 3<&0 </dev/null; (cat <&3; kill -KILL 0) >/dev/null 2>&1 & sh -c "$1" 3<&- & wait $!; exit $?'
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What Dask sets for its workers; by the first, memory goes back so eagerly that stages take up to 1.4 times as long.
OF_DASK = {"MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED", "__DASK_PARENT_PID"}
_one_at_a_time = threading.Lock()  # all of a worker's threads are for one stage


class Ended(NamedTuple):
    """How a stage's command ended on a worker."""

    code: int
    error: str  # the last line of its standard error
    worker: str
    start: float  # seconds since the epoch, by the worker's clock
    end: float


def dask_setup(_: Any) -> None:
    """Dask calls this in each worker it starts here: what it says of itself there goes to a file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "workers.log").open("ab") as log:
        os.dup2(log.fileno(), 2)  # standard error


def perform(name: str, command: str, root: str, topic: str, threads: int, devices: list[str]) -> Ended:
    """On a worker: run a stage's command with `threads` (0: the worker's), on its own GPU where `devices` has them.

    Ends the command, and all it started, where the coordinator no longer wants it or the worker has to leave.
    """
    from distributed import Reschedule, get_worker

    worker = get_worker()
    key = worker.get_current_task()
    log = Path(root) / FOLDER / f"{name}.log"
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if name not in OF_DASK}
    environment = {**inherited, "PATH": programs, "DVC_ROOT": root, "DVC_STAGE": name, WORKER: str(worker.name)}
    environment |= dict.fromkeys(THREADS, str(threads or worker.state.nthreads))
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[int(worker.name)]
    if not log.parent.is_dir():
        message = f"{root}: no such checkout on {socket.gethostname()}; all machines must share it"
        return Ended(2, message, str(worker.name), time.time(), time.time())
    with _one_at_a_time, log.open("wb") as stderr:
        start = time.time()
        with subprocess.Popen(
            ["sh", "-c", GUARD, name, command],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        ) as running:
            worker.log_event(topic, {"stage": name, "on": str(worker.name)})
            while running.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(0.2)
                if not _is_wanted(worker, key):
                    os.killpg(running.pid, signal.SIGKILL)
                    raise Reschedule  # to another worker, if this one is about to leave
    lines = log.read_text(errors="replace").strip().splitlines()
    return Ended(running.returncode, lines[-1] if lines else "", str(worker.name), start, time.time())


def _is_wanted(worker: Any, key: str) -> bool:
    """Whether a worker is to go on with a task: not when it was told to leave, nor when the coordinator has."""
    task = worker.state.tasks.get(key)
    return not worker.status.name.startswith("clos") and task is not None and task.state != "cancelled"
