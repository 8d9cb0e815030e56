"""The one way a comparison is run: same inputs, equal results first, then turns, then medians and their spread.

A case says what runs; `race` runs it; `table` prints it. A stage's cases stand in the file of its name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

Run = Callable[[], Any]


class Seconds(float):
    """What a contender returns that has timed itself, such as one in a process of its own, without its start."""


class Rival(NamedTuple):
    """What ours is held against: a peer, that ours should be ahead of, or a bound, that ours cannot be ahead of."""

    name: str
    run: Run
    factor: float | None = None  # the target: a peer takes at least so many times ours, ours at most so many the bound


class Case(NamedTuple):
    """One comparison on one set of inputs."""

    stage: str
    name: str  # of the case: shapes, counts
    ours: Run
    same: Callable[..., str]  # of the results of ours and of each peer, in order: asserts, returns what they differ by
    peers: tuple[Rival, ...] = ()
    bound: Rival | None = None
    units: int = 0  # of work in one run, for a rate
    unit: str = "token"
    limit: float | None = None  # the target of ours by itself, seconds


class Row(NamedTuple):
    """Ours against one rival, medians over repetitions; without a rival, ours against its limit."""

    stage: str
    case: str
    seconds: float  # ours
    rate: str  # of ours: units a second
    rival: str
    rival_seconds: float | None
    ratio: float | None  # median over repetitions of rival / ours; of a bound: the share of it that ours reaches
    low: float | None  # least and greatest ratio of a repetition
    high: float | None
    target: str
    met: bool | None  # None: no target
    difference: str  # of results, as the case's `same` says it


def seconds(run: Run, clock: Callable[[], float] = time.perf_counter) -> float:
    """One run; what a GPU was given is waited for."""
    started = clock()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return float(result) if isinstance(result, Seconds) else clock() - started


def race(case: Case, repetitions: int, clock: Callable[[], float] = time.perf_counter) -> list[Row]:
    """Rows of a case: one a peer, one of the bound; one of ours alone where it has neither.

    Every contender runs once to warm up, and `same` sees what ours and the peers then returned: AssertionError ends
    the case before anything is timed. Then they take turns, in reverse in every second repetition, so that a machine
    that slows down slows all; ratios are taken within a repetition.
    """
    say(f"{case.stage}, {case.name}: equality")
    first = [run() for run in (case.ours, *(peer.run for peer in case.peers))]
    difference = case.same(*first)
    del first
    if case.bound:
        case.bound.run()
    contenders = [case.ours, *(rival.run for rival in case.peers), *([case.bound.run] if case.bound else [])]
    taken: list[list[float]] = [[] for _ in contenders]
    for repetition in range(repetitions):
        say(f"{case.stage}, {case.name}: repetition {repetition + 1} of {repetitions}")
        turns = list(zip(contenders, taken, strict=True))
        for run, times in turns[:: -1 if repetition % 2 else 1]:
            times.append(seconds(run, clock))
    mine, *others = taken
    ours = median(mine)
    rate = f"{case.units / ours:,.0f} {case.unit}s/s" if case.units else ""
    start = Row(case.stage, case.name, ours, rate, "", None, None, None, None, "", None, difference)
    rows = []
    for rival, times in zip((*case.peers, *([case.bound] if case.bound else [])), others, strict=True):
        ratios = [theirs / own for theirs, own in zip(times, mine, strict=True)]
        ratio, name, target, met = median(ratios), rival.name, "", None
        if rival is case.bound:
            name = f"bound: {rival.name}"
            if rival.factor is not None:
                target, met = f"≥ {1 / rival.factor:.0%} (within {rival.factor:g}x)", ratio >= 1 / rival.factor
        elif rival.factor is not None:
            target, met = f"≥ {rival.factor:g}x", ratio >= rival.factor
        rows.append(
            start._replace(
                rival=name,
                rival_seconds=median(times),
                ratio=ratio,
                low=min(ratios),
                high=max(ratios),
                target=target,
                met=met,
            )
        )
    if case.limit is not None:
        rows.append(start._replace(target=f"< {case.limit:g} s", met=ours < case.limit))
    return rows or [start]


def extra_memory(run: Run) -> int:
    """Bytes by which this process's resident memory grew at most while `run` ran (Linux).

    What the allocator has kept back hides growth: measure in a process of its own, with MALLOC_MMAP_THRESHOLD_ set.
    """

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


HEADER = (
    "| stage | case | ours | against | it takes | ratio, or share of the bound | spread | target | met | same results |"
)


def table(rows: Iterable[Row]) -> str:
    """Rows as Markdown. A ratio is the rival's time over ours: above 1 where ours is ahead."""
    lines = [HEADER, "| --- | --- | ---: | --- | ---: | ---: | ---: | --- | --- | --- |"]
    for row in rows:
        ours = f"{row.seconds:.3g} s" + (f", {row.rate}" if row.rate else "")
        share = row.rival.startswith("bound: ")
        theirs = "" if row.rival_seconds is None else f"{row.rival_seconds:.3g} s"
        ratio, low, high = (
            "" if value is None else f"{value:.0%}" if share else f"{value:.2f}x"
            for value in (row.ratio, row.low, row.high)
        )
        spread = f"{low}–{high}" if low else ""  # noqa: RUF001
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        cells = row.stage, row.case, ours, row.rival, theirs, ratio, spread, row.target, met, row.difference
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
