"""Run stages of a project one after another in one process, each with a fault and again without; a line of JSON each.

python stages.py PROJECT {none,full,limit,clock} COMMAND...
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_survival.cli import main

OUTPUTS = {
    "data": ["data"],
    "base": ["artifacts/{0}/base", "artifacts/training"],
    "prune": ["artifacts/{0}/prune"],
    "cache": ["artifacts/{0}/{1}/cache"],
    "sae": ["artifacts/{0}/{1}/sae"],
    "metrics": ["artifacts/metrics/{0}/{1}"],
    "variants": ["artifacts/{0}/variants/{1}", "artifacts/variants/{0}/{1}"],
    "contexts": ["artifacts/contexts/{0}"],
    "release": ["artifacts/saes/{0}/{1}"],
    "summarize": ["results"],
    "figure": ["paper_figures"],
    "tables": ["paper_figures"],
    "claims": ["results", "paper_figures"],
    "report": ["artifacts/report"],
}
FILES = ("summarize", "figure", "tables", "claims")  # replace one after the other, so that half the room may do
PAGE = 4096


def files(places: list[Path]) -> dict[str, bytes]:
    """Every file below some folders."""
    return {str(file): file.read_bytes() for top in places for file in sorted(top.rglob("*")) if file.is_file()}


def stamps(places: list[Path]) -> dict[Path, int]:
    """When each file below some folders was written."""
    return {file: file.stat().st_mtime_ns for top in places for file in top.rglob("*") if file.is_file()}


def written(words: list[str], places: list[Path]) -> list[int]:
    """The sizes of the files that a subcommand writes: others may lie beside them."""
    before = stamps(places)
    run(words)
    return [file.stat().st_size for file, at in stamps(places).items() if before.get(file) != at]


def run(words: list[str]) -> tuple[int, str]:
    """One subcommand: its exit code and standard error, that of libraries included."""
    reading, writing = os.pipe()
    kept = os.dup(2)
    os.dup2(writing, 2)
    sys.argv = ["feature-survival", *words]
    code: object = "it came back"
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException as error:  # what a user would see as a traceback
        code = f"{type(error).__name__}: {error}"
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writing)
    with os.fdopen(reading) as said:
        return code, said.read()


@contextmanager
def full(sizes: list[int]) -> Iterator[None]:
    """The disk has room for half of what is about to be written."""
    room = sum(-(-size // PAGE) for size in sizes) // 2 * PAGE
    state = os.statvfs(".")
    filler = Path("filler")
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - room)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def limit(sizes: list[int]) -> Iterator[None]:
    """No file may grow to the size of the largest that is about to be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) * 2 // 3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def clock(_: list[int]) -> Iterator[None]:
    """Half a century ahead at first, and going backwards, a day each time it is asked."""
    real, asked = time.time, [0]

    def wrong() -> float:
        asked[0] += 1
        return real() + 86400 * (18_000 - asked[0])

    time.time = wrong
    time.time_ns = lambda: int(wrong() * 1e9)
    try:
        yield
    finally:
        time.time = real


def drill(command: str, fault: str) -> dict[str, object]:
    """A stage with a fault, and then without."""
    words = command.split()
    places = [Path(place.format(*words[1:])) for place in OUTPUTS[words[0]]]
    if fault == "none":
        code, said = run(words)
        return {"command": command, "code": code, "said": said}
    sizes = [] if fault == "clock" or (fault == "full" and words[0] in FILES) else written(words, places)
    before = files(places)
    with globals()[fault](sizes):
        code, said = run(words)
    after = files(places)
    left = [str(path) for path in Path().rglob(".*.partial-*")]
    again, _ = run(words) if fault in ("full", "limit") else (0, "")
    return {
        "command": command,
        "code": code,
        "said": said,
        "untouched": after == before,
        "left": left,
        "again": again == 0 and files(places) == before,
    }


if __name__ == "__main__":
    _, project, of_which_kind, *commands = sys.argv
    os.chdir(project)
    for stage in commands:
        print(json.dumps(drill(stage, of_which_kind)), flush=True)
