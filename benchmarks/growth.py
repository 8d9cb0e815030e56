"""How time and memory grow: each stage at sizes that double, and the exponent of a power law through them.

    python benchmarks/bench.py --only growth

An exponent is the slope of a least-squares line through logarithms; its range is that of the slopes between
neighbouring sizes. Time is the least of some runs, taken in turns. Memory is what a process of its own grows by
while the work runs, beyond its inputs; below 4 MiB no exponent is fitted. Fixed costs make exponents small at sizes
like these; none may be worse than linear in tokens, seeds, features that are ablated, and cells.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import linear_regression
from typing import NamedTuple

import torch
from race import Run, extra_memory, say, seconds

TOP = Path(__file__).resolve().parent.parent
REPETITIONS = 2
LINEAR = 1.1  # at most, where linear is promised: a tenth is what a fit over few sizes may be off by
FLOOR = 4 * 2**20  # bytes; growth of less is the allocator's, not the work's


class Curve(NamedTuple):
    """What grows, and the work at a size: a function that makes its inputs and returns what is measured."""

    stage: str
    along: str
    sizes: tuple[int, ...]
    make: Callable[[int, Path], Run]
    linear: bool  # whether it must not be worse


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Slope of log value over log size: fitted, and the least and greatest between neighbours."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    steps = [(y[n + 1] - y[n]) / (x[n + 1] - x[n]) for n in range(len(x) - 1)]
    return linear_regression(x, y).slope, min(steps), max(steps)


def prune(windows: int, width: int) -> Run:
    """Wanda, all blocks."""
    from shapes import random_tokens, untrained

    from feature_survival.compression.calibrate import compress
    from feature_survival.recipes import Recipe

    model, tokens = untrained("llama", width), random_tokens(windows)
    return lambda: compress(model, Recipe("wanda", 0.5), tokens, 16)


def cache(windows: int, width: int, folder: Path) -> Run:
    """One split."""
    from shapes import SITE, random_tokens, untrained

    from feature_survival.activations import write_shards

    model, tokens = untrained("llama", width), random_tokens(windows)
    return lambda: write_shards(model, SITE, tokens, 16, 64, folder, "sae")


def sae(rows: int, expansion: int, seeds: int, folder: Path) -> Run:
    """SAEs in one pass."""
    from sae import planted
    from safetensors.torch import save_file

    from feature_survival.activations import Shards, measure_normalization
    from feature_survival.config import Seed, load
    from feature_survival.trainers import Job, train_saes

    save_file({"activations": planted(rows, 1)}, folder / "sae-00000.safetensors")
    shards = Shards(folder, "sae")
    normalization = measure_normalization(shards)
    cfg = load(TOP / "params.yaml").sae
    # Many steps, and dead features revived from early on: as in most of a long training.
    cfg = cfg.model_copy(update={"expansion": expansion, "batch_tokens": 256, "dead_after_steps": 4})

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            jobs = [Job(cfg, Seed(number, 0), Path(out) / f"{number}") for number in range(seeds)]
            train_saes(jobs, shards, normalization, {})

    return run


def transfer(rows: int, features: int) -> Run:
    """A dense model's SAE on a cell."""
    from causal import K
    from sae import WIDTH, planted

    from feature_survival.metrics.transfer import measure_transfer
    from feature_survival.sae import ROWS, Dictionary

    x = planted(rows, 2).float()
    decoder = torch.nn.functional.normalize(torch.randn(features, WIDTH), dim=1)
    dictionary = Dictionary(decoder.T.contiguous(), torch.zeros(features), decoder, x[:1000].mean(0), K)
    return lambda: measure_transfer(dictionary, x.split(ROWS), x.split(ROWS))


def matching(rows: int) -> Run:
    """Both dictionaries of as many features."""
    from matching import dictionaries

    from feature_survival.matching import mutual_cosine

    a, b = dictionaries(rows, 128)
    return lambda: mutual_cosine(a, b)


def causal(features: int, windows: int) -> Run:
    """Effects of features."""
    from causal import effects, inputs

    given = inputs(features, windows)
    return lambda: effects(given)


def cells(count: int) -> Run:
    """As many conditions of one model."""
    from shapes import random_tokens, untrained

    from feature_survival.compression.calibrate import compress
    from feature_survival.recipes import Recipe

    model, tokens = untrained("llama"), random_tokens(16)

    def run() -> None:
        for number in range(count):
            compress(model, Recipe("wanda", (number + 1) / (count + 1)), tokens, 16)

    return run


def plan(count: int, folder: Path) -> Run:
    """params.yaml with a grid of as many cells, read and planned."""
    from ruamel.yaml import YAML

    from feature_survival.config import load
    from feature_survival.plan import estimate

    content = YAML(typ="safe").load(TOP / "params.yaml")
    names = [f"copy-{number}" for number in range(count // len(content["study"]["conditions"]))]
    content["models"] |= {name: content["models"]["mini-llama3"] for name in names}
    content["study"]["bases"] = content["study"]["models"] = names
    content["variants"]["models"] = names[:1]
    YAML(typ="safe").dump(content, folder / "params.yaml")
    return lambda: estimate(load(folder / "params.yaml"), [], "cpu-2")


CURVES = (
    Curve("prune, wanda", "tokens", (32, 64, 128), lambda n, _: prune(n, 128), True),
    Curve("prune, wanda", "width", (128, 256, 512), lambda n, _: prune(16, n), False),
    Curve("cache", "tokens", (64, 128, 256, 512), lambda n, folder: cache(n, 128, folder), True),
    Curve("cache", "width", (128, 256, 512), lambda n, folder: cache(64, n, folder), False),
    Curve("sae", "tokens", (32_768, 65_536, 131_072), lambda n, folder: sae(n, 8, 1, folder), True),
    Curve("sae", "width", (4, 8, 16), lambda n, folder: sae(16_384, n, 1, folder), False),
    Curve("sae", "seeds", (1, 2, 4), lambda n, folder: sae(16_384, 8, n, folder), True),
    Curve("metrics, transfer", "tokens", (16_384, 32_768, 65_536), lambda n, _: transfer(n, 1024), True),
    Curve("metrics, transfer", "width", (512, 1024, 2048), lambda n, _: transfer(16_384, n), False),
    Curve("metrics, matching", "width", (2_048, 4_096, 8_192), lambda n, _: matching(n), False),
    Curve("metrics, causal", "tokens", (16, 32, 64), lambda n, _: causal(8, n), True),
    Curve("metrics, causal", "features", (8, 16, 32), lambda n, _: causal(n, 32), True),
    Curve("prune, wanda", "cells", (1, 2, 4), lambda n, _: cells(n), True),
    Curve("plan", "cells", (44, 88, 176), plan, True),
)


def works(curve: Curve, folders: ExitStack) -> list[tuple[int, Run]]:
    """The work at every size, its inputs made."""
    return [
        (size, curve.make(size, Path(folders.enter_context(tempfile.TemporaryDirectory())))) for size in curve.sizes
    ]


def least_seconds(curve: Curve) -> list[float]:
    """At each size; sizes in turns, the first round to warm up."""
    least = dict.fromkeys(curve.sizes, math.inf)
    with ExitStack() as folders:
        runs = works(curve, folders)
        for repetition in range(1 + REPETITIONS):
            for size, run in runs:
                taken = seconds(run)
                if repetition:
                    least[size] = min(least[size], taken)
    return list(least.values())


def most_memory(curve: Curve) -> list[int]:
    """Bytes at each size; for a process of its own."""
    with ExitStack() as folders:
        found = []
        for _, run in works(curve, folders):
            run()
            found.append(extra_memory(run))
        return found


def memories(curves: Sequence[Curve], threads: int) -> list[list[int]]:
    """Bytes of every curve at every size, from a process whose allocator keeps nothing back."""
    ended = subprocess.run(
        [sys.executable, __file__, str(threads), *(str(CURVES.index(curve)) for curve in curves)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ended.stdout.splitlines()[-1])


def written(values: Sequence[float], sizes: Sequence[int], linear: bool) -> tuple[str, bool]:
    """An exponent with its range, and whether it is what it must be."""
    slope, low, high = exponent(sizes, values)
    return f"{slope:.2f} ({low:.2f} to {high:.2f})", not linear or slope <= LINEAR


def table(curves: Sequence[Curve] = CURVES) -> str:
    """The table, in Markdown."""
    lines = [
        "| stage | grows with | sizes | seconds | exponent of time | extra MiB | exponent of memory | at most linear |",
        "| --- | --- | --- | --- | ---: | --- | ---: | --- |",
    ]
    times = []
    for curve in curves:
        say(f"growth: {curve.stage} with {curve.along}")
        times.append(least_seconds(curve))
    say("growth: memory")
    for curve, taken, held in zip(curves, times, memories(curves, torch.get_num_threads()), strict=True):
        of_time, good_time = written(taken, curve.sizes, curve.linear)
        of_memory, good_memory = "", True
        if min(held) >= FLOOR:
            of_memory, good_memory = written(held, curve.sizes, curve.linear)
        cells = (
            curve.stage,
            curve.along,
            ", ".join(f"{size:,}" for size in curve.sizes),
            ", ".join(f"{value:.2g}" for value in taken),
            of_time,
            ", ".join(f"{value / 2**20:.0f}" for value in held),
            of_memory,
            ("yes" if good_time and good_memory else "**no**") if curve.linear else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps([most_memory(CURVES[int(number)]) for number in sys.argv[2:]]))
