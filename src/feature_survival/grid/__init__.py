"""`feature-survival grid`: the stale stages of the DVC graph on Dask's workers, as soon as their inputs are there.

Workers run a stage's own command in the checkout, which all machines share, and never ask DVC; the coordinator alone
does. It decides as `dvc repro` would, once everything upstream is recorded: a stage whose inputs came out as they were
is not run again, one that DVC's run cache knows is restored.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from feature_survival.artifacts import timeline
from feature_survival.config import load
from feature_survival.grid.book import Book, open_book
from feature_survival.grid.worker import Ended, perform
from feature_survival.schema import InputError

RETRIES = 2  # of a stage whose worker died
MOST_WORKERS = 8  # that are started unasked on a machine without GPUs: each may take 2 GB
# What a worker of Dask's says as it starts would stand among our own lines; from then on, see `worker.dask_setup`.
QUIET = {"distributed.nanny.pre-spawn-environ": {"DASK_LOGGING__DISTRIBUTED": "critical"}}
INTERRUPTED = 130
# Seconds a stage takes in the default grid on one core: what has the longest way behind it begins first.
SECONDS = {"base": 225, "prune": 39, "cache": 19, "sae": 20, "metrics": 21, "variants": 140}


def _devices(device: str) -> list[str]:
    """This machine's GPUs, as CUDA_VISIBLE_DEVICES names them; none where params.yaml asks for the CPU."""
    if device == "cpu" or not shutil.which("nvidia-smi"):
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    if named and device.startswith("cuda:"):
        raise InputError(f"params.yaml: device: {device!r} is one GPU; each worker has its own: auto or cuda is needed")
    return named[: torch.cuda.device_count()]


@contextmanager
def _client(scheduler: str, workers: int, devices: list[str]) -> Iterator[Any]:
    """A client of the scheduler at an address, or of workers on this machine."""
    import dask
    from distributed import Client, LocalCluster
    from distributed.comm import get_address_host_port

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        where: Any = scheduler
        if not scheduler:
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": RETRIES, **QUIET}))
            where = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,  # one stage at a time
                processes=True,
                memory_limit=0,  # stages are processes of their own
                preload=[perform.__module__],
                resources={"GPU": 1} if devices else {},
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
            stack.enter_context(where)
        try:
            get_address_host_port(where if scheduler else where.scheduler_address)
            client = stack.enter_context(Client(where, timeout=5, set_as_default=False))
        except (OSError, ValueError) as error:
            raise InputError(f"scheduler {where}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
        yield client


class _Grid:
    """One run: hands stages out as they get ready, and records those that end."""

    def __init__(self, book: Book, client: Any, threads: int, devices: list[str]) -> None:
        self.book, self.client, self.threads, self.devices = book, client, threads, devices
        self.topic = f"feature-survival-{uuid.uuid4().hex}"
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        client.subscribe_topic(self.topic, self.events.put)
        self.rank: dict[Any, int] = {}
        for stage in reversed(book.plan):
            below = (self.rank[dependent] for dependent in book.downstream(stage))
            self.rank[stage] = SECONDS.get(stage.addressing.partition("@")[0], 3) + max(below, default=0)
        self.undecided = [stage for stage in book.plan if not book.upstream(stage)]
        self.ready: list[Any] = []
        self.running: dict[Any, Any] = {}
        self.settled: set[Any] = set()
        self.failed: dict[Any, int] = {}
        self.times: list[float] = []  # seconds of each stage that ended
        self.bar = tqdm(total=len(book.plan), unit="stage", disable=None, dynamic_ncols=True, leave=False)
        self.waits = False
        self.began = time.time()

    def run(self) -> int:
        """Until nothing is left that can be run. Returns the exit code."""
        try:
            while self.undecided or self.ready or self.running:
                self._hand_out()
                if self.undecided:
                    self._decide(self.undecided.pop(0))
                with contextlib.suppress(queue.Empty):  # a worker may have joined
                    self._heed(self.events.get(timeout=0 if self.undecided else 1))
            return self._sum_up()
        except KeyboardInterrupt:
            self._say(f"interrupted; {len(self.book.recorded)} stages were recorded, `make grid` goes on", error=True)
            return INTERRUPTED
        except OSError as error:
            if not self._is_gone():
                raise
            raise self._gone() from error
        finally:
            self.bar.close()
            if not self._is_gone():
                self.client.cancel(list(self.running))

    def _hand_out(self) -> None:
        """One ready stage to every idle worker; where workers have GPUs, to those that do."""
        if not self.ready:
            return
        workers = self.client.scheduler_info()["workers"].values()
        needed = {"GPU": 1} if any(worker["resources"].get("GPU") for worker in workers) else {}
        if not workers and not self.waits:
            self.waits = True
            self._say("no worker is there yet; waiting for one")
        places = sum(needed.items() <= worker["resources"].items() for worker in workers)
        for stage in sorted(self.ready, key=self.rank.__getitem__, reverse=True)[: max(0, places - len(self.running))]:
            self.ready.remove(stage)
            command = stage.cmd if isinstance(stage.cmd, str) else "\n".join(["set -e", *stage.cmd])
            name = stage.addressing
            future = self.client.submit(
                perform,
                *(name, command, str(self.book.root), self.topic, self.threads, self.devices),
                key=f"{name}-{uuid.uuid4().hex}",
                resources=needed,
                pure=False,
            )
            self.running[future] = stage
            future.add_done_callback(self.events.put)

    def _decide(self, stage: Any) -> None:
        """What is to become of a stage whose upstream is recorded."""
        from dvc.exceptions import DvcException

        try:
            if self.book.is_stale(stage):
                self.ready.append(stage)
            else:
                self._settle(stage)
        except DvcException as error:
            self._fail(stage, 2, str(error).splitlines()[0])

    def _settle(self, stage: Any) -> None:
        self.settled.add(stage)
        self.bar.update()
        for below in self.book.downstream(stage):
            if self.book.upstream(below) <= self.settled:
                self.undecided.append(below)

    def _heed(self, event: Any) -> None:
        """A stage began, told by its worker as (time, message), or ended, as its future."""
        if isinstance(event, tuple):
            self._say(f"{event[1]['stage']:44} begins on worker {event[1]['on']}")
            return
        stage = self.running.pop(event)
        if event.status == "error":
            error = event.exception()
            died = f"its worker died {RETRIES + 1} times" if type(error).__name__ == "KilledWorker" else repr(error)
            self._fail(stage, 1, died)
        elif event.status == "finished":
            self._end(stage, event.result())
        else:
            raise self._gone()
        event.release()

    def _end(self, stage: Any, ended: Ended) -> None:
        from dvc.exceptions import DvcException

        self.times.append(ended.end - ended.start)
        try:
            if ended.code:
                self._fail(stage, 2 if ended.code == 2 else 1, ended.error or f"exit code {ended.code}")
            elif missing := self.book.not_written(stage):
                self._fail(stage, 1, f"ended without writing {missing}")
            else:
                self.book.record(stage)
                self._say(f"{stage.addressing:44} {ended.end - ended.start:7.1f} s on worker {ended.worker}")
                self._settle(stage)
        except InputError as error:
            self._fail(stage, 2, str(error))
        except DvcException as error:
            self._fail(stage, 1, str(error).splitlines()[0])

    def _fail(self, stage: Any, code: int, message: str) -> None:
        self.failed[stage] = code
        self._say(f"{stage.addressing}: {message.removeprefix('error: ')}", error=True)

    def _say(self, line: str, error: bool = False) -> None:
        self.bar.write(f"error: {line}" if error else line, file=sys.stderr if error else sys.stdout)
        sys.stdout.flush()

    def _is_gone(self) -> bool:
        """Whether the scheduler has left."""
        return self.client.status != "running"

    def _gone(self) -> InputError:
        return InputError("the scheduler is gone; what was finished is recorded, `make grid` goes on from there")

    def _sum_up(self) -> int:
        """Say what came out. Returns the exit code."""
        skipped = [stage.addressing for stage in self.book.plan if stage not in self.settled | self.failed.keys()]
        self._say(
            f"{len(self.times)} stages run in {time.time() - self.began:.0f} s, {sum(self.times):.0f} s of work; "
            f"{len(self.failed)} failed; {len(skipped)} skipped; "
            f"{len(self.settled)} of {len(self.book.plan)} up to date; times: {timeline(Path())}"
        )
        if skipped:
            self._say(f"not run, as they depend on a failed one: {', '.join(skipped)}", error=True)
        return max(self.failed.values(), key=lambda code: code == 1) if self.failed else 0


def run(
    root: Path,
    workers: int | None,
    scheduler: str,
    threads: int | None,
    allow_missing: bool = False,
    force: bool = False,
) -> int:
    """Run what is stale on `workers` processes of this machine, or on the workers of a scheduler; `threads` a stage.

    workers: by themselves one a GPU, or one a core, MOST_WORKERS at most. allow_missing: run only what changed and what
    that needs; outputs that nothing asks for may be elsewhere. force: run every stage, whatever is there.

    Returns the exit code: 0, 2 where stages failed by their input only, 1 where one failed otherwise, 130 where
    interrupted; independent stages finish all the same, and what finished is recorded. InputError before anything runs.
    """
    from dask.system import CPU_COUNT

    device = load(root / "params.yaml").device
    for name, value in (("WORKERS", workers), ("THREADS", threads)):
        if value is not None and value < 1:
            raise InputError(f"{name}: at least 1 is needed, found {value}")
    devices = [] if scheduler else _devices(device)
    if workers is None:
        workers = len(devices) or min(CPU_COUNT, MOST_WORKERS)
    if devices and workers > len(devices):
        raise InputError(f"WORKERS: {workers} asked, one GPU each; this machine has {len(devices)}")
    if not scheduler:
        threads = threads or max(1, CPU_COUNT // workers)
    stop = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's, as Ctrl-C
    try:
        with ExitStack() as stack:
            client = stack.enter_context(_client(scheduler, workers, devices)) if scheduler else None
            book = stack.enter_context(open_book(root, force))
            if allow_missing:
                book.plan_needed()
            code = 0
            while book.plan and not code:
                client = client or stack.enter_context(_client("", workers, devices))
                code = _Grid(book, client, threads or 0, devices).run()
                if not allow_missing:
                    break
                book.plan_needed()
            if not code and allow_missing:
                away = sum(book.lacks(stage) for stage in book.stages)
                print(f"all {len(book.stages)} stages are up to date; outputs of {away} are not here, and not needed")
            return code
    finally:
        signal.signal(signal.SIGTERM, stop)
