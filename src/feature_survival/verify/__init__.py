"""`feature-survival verify`: computes published results again and compares, number by number and claim by claim.

First without computing: are the published files those that dvc.lock names? Then cells are computed again in a scratch
clone, from the published base models, or everything from nothing. Bytes that are the same need no further look; numbers
that differ are held to a tolerance (module `tolerance`), verdicts to their bounds. The checkout is left as it is.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from feature_survival import environment
from feature_survival.artifacts import timeline
from feature_survival.config import Params
from feature_survival.quick import perform
from feature_survival.schema import InputError
from feature_survival.verify import claims, page, recompute
from feature_survival.verify.compare import MODELS, SEEDS, Again, align, read_tables
from feature_survival.verify.published import Entry, altered, changed_inputs, read_lock
from feature_survival.verify.recompute import Chosen
from feature_survival.verify.tolerance import judge, measure, read_spread, write_spread

SCRATCH = ".verify"


def run(params: Params, root: Path, names: list[str], workers: int | None) -> int:
    """Verify what was named, or everything; returns 1 where something really differs, else 0.

    InputError for an unknown name, for what is not there to be compared with, and where a stage fails.
    """
    chosen, spread, lock = recompute.choose(names, params), read_spread(root), read_lock(root)
    links, scratch = recompute.needed(params, chosen), root / SCRATCH
    wrong = altered(root, lock, [] if chosen.everything else links)
    for path in wrong:
        print(f"difference: {path}: not the bytes that dvc.lock names")
    can_gather = all((root / path).exists() for path in links)
    if wrong and (not can_gather or any(path.startswith("artifacts/") for path in wrong)):
        were = "file was" if len(wrong) == 1 else "files were"
        print(f"not verified: {len(wrong)} published {were} changed; dvc checkout --force brings them back")
        return 1
    if wrong:  # made again from the published artifacts, results say which number it is
        recompute.prepare(root, scratch, links)
        _gather(scratch)
        again = Again(set(), set())
    else:
        again = _again(root, scratch, chosen, links, lock, workers)
    judged = judge(_aligned(root, read_tables(scratch / "results"), again), spread)
    held = claims.compare(root, scratch, spread, exact=not again.changed)
    _say(root, scratch, lock, again, judged, held)
    found = page.differences(judged, held)
    for line in found:
        print(f"difference: {line}")
    if found or wrong:
        count = int(judged["real"].sum()) + sum(one.state == claims.DIFFERS for one in held) or len(wrong)
        print(f"not verified: {count} difference{'s' * (count > 1)}; what was computed is in {scratch}")
        return 1
    shutil.rmtree(scratch)
    print(page.summary(judged, held, _count(chosen, params)))
    return 0


def measure_spread(params: Params, root: Path, names: list[str], workers: int | None) -> Path:
    """Measure how far other seeds move each number, and write results/spread.csv.

    Places named are computed with SAEs of other seeds; nothing named: everything, with models of other seeds. Cells are
    refused: the first study's tables cannot hold other seeds beside the published ones.
    """
    chosen, lock = recompute.choose(names, params), read_lock(root)
    if chosen.cells:
        model, condition = chosen.cells[0]
        raise InputError(f"--spread: {model}-{condition} is a cell; name places, e.g. {model}-mlp_out, or nothing")
    links, scratch = recompute.needed(params, chosen), root / SCRATCH
    if wrong := altered(root, lock, [] if chosen.everything else links):
        raise InputError(
            f"{environment.few(wrong)}: not what dvc.lock names; spread is measured from published results"
        )
    again = _again(root, scratch, chosen, links, lock, workers, other_seeds=True)
    moved = {name: recompute.unshift(table) for name, table in read_tables(scratch / "results").items()}
    kind = MODELS if chosen.everything else SEEDS
    path = write_spread(root, measure(_aligned(root, moved, again), kind))
    shutil.rmtree(scratch)
    return path


def _again(
    root: Path,
    scratch: Path,
    chosen: Chosen,
    links: list[str],
    lock: dict[str, Entry],
    workers: int | None,
    other_seeds: bool = False,
) -> Again:
    """Compute in the scratch clone: the chosen stages, all tables, all verdicts."""
    recompute.prepare(root, scratch, [] if chosen.everything else links)
    if other_seeds:
        recompute.shift_seeds(scratch, chosen)
    recompute.provide_text(root, scratch)
    there = environment.published(root)
    recompute.compute(scratch, chosen, workers, environment.read(there) if there.exists() else {})
    if not chosen.everything:
        _gather(scratch)
    changed = recompute.changed_outputs(scratch, lock)
    for stage, outputs in changed.items():
        print(f"{stage:44} {'other bytes: ' + ', '.join(outputs) if outputs else 'the published bytes'}")
    return Again(set(changed), {stage for stage, outputs in changed.items() if outputs})


def _gather(scratch: Path) -> None:
    perform(["feature-survival", "summarize"], scratch)
    perform(["feature-survival", "claims"], scratch)


def _aligned(root: Path, recomputed: dict[str, pd.DataFrame], again: Again) -> pd.DataFrame:
    """All numbers of all tables that hold models."""
    published = read_tables(root / "results")
    tables = [name for name in recomputed if name in published and "model" in published[name]]
    return pd.concat([align(name, published[name], recomputed[name], again) for name in tables], ignore_index=True)


def _say(
    root: Path, scratch: Path, lock: dict[str, Entry], again: Again, judged: pd.DataFrame, held: list[claims.Held]
) -> None:
    """Which numbers drifted, and why they may have."""
    console = page.console()
    if (judged["drift"] > 0).any():
        console.print(page.metrics(judged))
    if any(one.published != one.recomputed for one in held):
        console.print(page.claims(held))
    if not again.changed:
        return
    stages = [stage for stage in lock if stage in again.changed]
    there, here = environment.published(root), timeline(scratch)
    why = changed_inputs(root, lock, stages)
    if there.exists() and here.exists():
        why += environment.differences(environment.read(there), environment.read(here), stages)
    elif not there.exists():
        why.append(f"{there} is missing, which says on what machine the published results were made")
    console.print("Why: " + ("\n     ".join(why) or "sources, settings, machine and versions are those of the record"))


def _count(chosen: Chosen, params: Params) -> str:
    cells, places = len(chosen.cells), len(chosen.places)
    if chosen.everything:
        cells = len(params.study.models) * len(params.study.conditions)
        places = len(params.variants.models) * len(params.variants.sites)
    parts = [f"{cells} cell{'s' * (cells > 1)}"] * bool(cells) + [f"{places} place{'s' * (places > 1)}"] * bool(places)
    return " and ".join(parts)
