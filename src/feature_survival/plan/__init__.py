"""What a grid takes before anything runs: FLOPs, bytes, disk, memory, time and cost, a model and stage at a time.

Pure arithmetic on params.yaml and on models built without weights: `devices` and how long work takes on them, the
`shape` of a model and what passes through it cost, the `work` of every stage, the `memory` it holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from feature_survival.config import Params
from feature_survival.plan.devices import DEVICES, Device
from feature_survival.plan.memory import LIBRARIES, peak
from feature_survival.plan.work import STAGES, Plan
from feature_survival.schema import InputError, unknown

GIB = 2**30
TOTAL = "total"


class Row(NamedTuple):
    """One stage of one model over all its cells; of the stage `total`, all of a model's. Bytes and seconds."""

    model: str
    stage: str
    flops: float
    read: float
    written: float
    kept: float
    device_memory: float
    host_memory: float
    seconds: float
    cost: float | None  # USD, where a price was given
    setting: str  # to lower for a lighter heaviest moment


def estimate(params: Params, models: list[str], device: str, price: float | None = None) -> list[Row]:
    """Rows of stages and a total for every model; none named: those of the grid, in the studies that they are in.

    A model that is named is planned as if both studies had it, the second where it has all its sites. price: USD an
    hour. InputError for an unknown model or device, a price that is none, or a budget that does not fit.
    """
    if device not in DEVICES:
        raise unknown("--device", device, list(DEVICES))
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise InputError(f"--price: {price:g} USD an hour; allowed: 0 or more")
    for name in models:
        if name not in params.models:
            raise unknown("--models", name, list(params.models))
    rows: list[Row] = []
    for name in dict.fromkeys(models or params.study.bases):
        plan = Plan.of(params, name)
        of_model = [_row(plan, stage, DEVICES[device], price) for stage in _stages(params, name, bool(models))]
        rows += [*of_model, total(name, of_model)]
    return rows


def _stages(params: Params, name: str, asked: bool) -> Iterator[str]:
    study, variants, sites = params.study, params.variants, params.models[name].sites
    first = name in study.models or (asked and study.site in sites)
    second = name in variants.models or (asked and set(variants.sites) <= set(sites))
    for stage in STAGES:
        if stage in ("base", "prune") or (second if stage == "variants" else first):
            yield stage


def _row(plan: Plan, stage: str, device: Device, price: float | None) -> Row:
    work, kept, processes = plan.stage(stage)
    seconds = device.seconds(work, processes)
    held = peak(plan, stage, device)
    return Row(
        plan.name,
        stage,
        work.flops,
        work.read,
        work.written,
        kept,
        held.device,
        held.host,
        seconds,
        None if price is None else seconds / 3600 * price,
        held.moment.setting,
    )


def total(name: str, rows: list[Row]) -> Row:
    """Sums, and the largest memory."""
    costs = [row.cost for row in rows if row.cost is not None]
    return Row(
        name,
        TOTAL,
        sum(row.flops for row in rows),
        sum(row.read for row in rows),
        sum(row.written for row in rows),
        sum(row.kept for row in rows),
        max(row.device_memory for row in rows),
        max(row.host_memory for row in rows),
        sum(row.seconds for row in rows),
        sum(costs) if costs else None,
        "",
    )


def warnings(rows: list[Row], device: str) -> list[str]:
    """One line for every stage that does not fit into the device's memory."""
    memory = DEVICES[device].memory
    return [
        f"{row.model} {row.stage}: {row.device_memory / GIB:.1f} GiB, {device} has {memory / GIB:.0f}"
        + (f"; lower {row.setting}" if row.setting else "; a larger device is needed")
        for row in rows
        if row.stage != TOTAL and row.device_memory > memory
    ]


def assumptions(device: str) -> str:
    """What the figures rest on, in one line."""
    of = DEVICES[device]
    origin = "calibrated on the default grid" if of.is_host else "an assumption, not measured"
    return (
        f"{device} sustains {of.efficiency:.0%} ({origin}) of {of.half / 1e12:.3g}, {of.single / 1e12:.3g} and "
        f"{of.double / 1e12:.3g} TFLOP/s in 16, 32 and 64 bits and of {of.bandwidth / 1e9:.0f} GB/s; it has "
        f"{of.memory / GIB:.0f} GiB; disk and download 500 MB/s; one stage after another; {LIBRARIES[0] / GIB:.1f} to "
        f"{LIBRARIES[1] / GIB:.1f} GiB of libraries on the host"
    )
