"""Every stage beside what one would otherwise use, on the same inputs in one process, taking turns.

    make bench                                              # everything; writes benchmarks/results.md
    python benchmarks/bench.py --only cache,matching        # some stages: prints, writes nothing
    python benchmarks/bench.py --full                       # with the cases that take minutes each

Results are compared before anything is timed. A ratio is the rival's time over ours, the median over repetitions,
its spread from the least to the greatest; a bound is the bare work that the stage is made of (above 100%: ours leaves
out a part that nothing reads). Nothing is downloaded.

Beside this: gpu.py, tokens a second of each stage at a paper model's shapes; memory.py, each stage's peak memory beside
what `feature-survival plan` says; saebench.py, SAEBench on SAEs of a paper-scale model.
"""

from __future__ import annotations

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # before libraries read it: their bars would hide the progress

import argparse
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from race import Case, Row, race, say, table
from transformers.utils.logging import disable_progress_bar

RESULTS = Path(__file__).parent / "results.md"
STAGES = "prune", "cache", "sae", "matching", "causal", "figures", "startup"  # each a module beside this one
GROWTH = "growth"  # the second table


def machine(threads: int) -> str:
    """What this ran on, in lines of Markdown."""
    model = platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = platform.system()
    with suppress(OSError):
        system += f", {platform.freedesktop_os_release()['PRETTY_NAME']}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "sae-lens", "transformers", "numpy"))
    load = os.getloadavg()[0]
    cores = f"{len(os.sched_getaffinity(0))} cores, {threads} threads, {memory:.0f} GiB"
    return (
        f"- {date.today()}; {model}, {cores}; {system}; Python {platform.python_version()}\n"
        f"- {versions}\n- load when it began: {load:.1f}"
    )


def cases(stages: Iterable[str], full: bool) -> Iterator[Case]:
    """The stages' cases; a case's inputs are made when it is asked for and gone when the next one is."""
    for stage in stages:
        yield from import_module(stage).cases(full)


def report(on: str, rows: list[Row], growth: str, repetitions: int) -> str:
    """The page."""
    return f"""# Side by side

Written by `make bench`. Ours and its rivals ran on the same inputs in one process, taking turns; results were compared
first. A ratio is the rival's time over ours, the median of {repetitions} repetitions; its spread runs from the least to
the greatest. A bound is the bare work that a stage is made of, and the share says how near to it ours is (above 100%:
ours leaves out a part of it that nothing reads).

{on}

{table(rows)}

## Growth

{growth}
"""


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = *STAGES, GROWTH
    parser.add_argument("--only", help=f"some of {','.join(known)}; the table is printed and not written")
    parser.add_argument("--repetitions", type=int, default=3, help="of every timing (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="also the cases that take minutes each")
    options = parser.parse_args()
    chosen = known if options.only is None else [name.strip() for name in options.only.split(",")]
    for name in chosen:
        if name not in known:
            parser.error(f"--only: no stage {name!r}; known: {', '.join(known)}")
    for key in ("repetitions", "threads"):
        if getattr(options, key) < 1:
            parser.error(f"--{key}: {getattr(options, key)} asked; allowed: 1 or more")
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of processes that cases start
    disable_progress_bar()
    on, rows, began = machine(options.threads), [], time.perf_counter()
    for case in cases([name for name in chosen if name != GROWTH], options.full):
        rows += race(case, options.repetitions)
    growth = import_module(GROWTH).table() if GROWTH in chosen else ""
    say(f"{time.perf_counter() - began:.0f} s in all")
    page = report(on, rows, growth, options.repetitions)
    print(page)
    if options.only is None:
        RESULTS.write_text(page)
    missed = [f"{row.stage}, {row.case}: {row.rival or 'limit'}" for row in rows if row.met is False]
    if missed:
        say("targets missed:\n" + "\n".join(missed))


if __name__ == "__main__":
    main()
