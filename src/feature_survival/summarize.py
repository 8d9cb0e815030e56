"""Stage `summarize`: all cells' metrics as tidy CSVs in `results/`, which git tracks and figures read.

`cells.csv` one row a cell · `saes.csv` one row an SAE · `survival.csv` one row a cell, pairing and tau ·
`fragility.csv` one row a cell, pairing and quintile of firing rate · `fragility_tests.csv` one row a cell and pairing ·
`training.csv` losses of the base models

In survival and fragility a dense feature counts once: its survival is the share of the SAEs it is paired with in which
it is found again. Intervals resample dense SAEs, then features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from feature_survival.artifacts import Cell, atomic_file, read_csv, read_json, read_parquet, training_log
from feature_survival.config import MAIN_TAU, InputError, Params
from feature_survival.metrics.fragility import BINS, Cluster, measure_fragility
from feature_survival.metrics.survival import PAIRINGS, RANDOM
from feature_survival.stats import cluster_bootstrap

Row = dict[str, object]


def run(params: Params, root: Path) -> None:
    """Write all tables. A cell of the grid whose metrics are absent is an error that names it."""
    grid = [Cell(root, model, condition) for model in params.study.models for condition in params.study.conditions]
    absent = [str(cell) for cell in grid if not cell.metrics.exists()]
    if absent:
        raise InputError(
            f"results: {len(absent)} of {len(grid)} cells have no metrics: {', '.join(absent)}; run dvc repro"
        )
    tables: dict[str, list[Row]] = {name: [] for name in ("cells", "saes", "survival", "fragility", "fragility_tests")}
    for cell in grid:
        for name, rows in _cell_rows(params, cell).items():
            tables[name] += rows
    training = [read_csv(training_log(root, model)).assign(model=model) for model in params.study.models]
    for name, table in {
        **{name: pd.DataFrame(rows) for name, rows in tables.items()},
        "training": pd.concat(training),
    }.items():
        with atomic_file(root / "results" / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def _cell_rows(params: Params, cell: Cell) -> dict[str, list[Row]]:
    """A cell's rows of every table."""
    numbers = read_json(cell.metrics / "metrics.json")
    features = read_parquet(cell.metrics / "features.parquet")
    condition = params.pruning(cell.condition)
    key: Row = {"model": cell.model, "condition": cell.condition, "series": _series(params, cell.condition)}
    saes = [{**key, **sae} for sae in numbers.pop("saes")]
    frame = pd.DataFrame(saes)
    means = {name: frame[name].mean() for name in ("fvu", "l0", "share_dead", "ce_sae", "ce_loss_score")}
    rows: dict[str, list[Row]] = {
        "cells": [{**key, "sparsity": condition.sparsity, **numbers, **means, "n_saes": len(saes)}],
        "saes": saes,
        "survival": [],
        "fragility": [],
        "fragility_tests": [],
    }
    key |= {"sparsity": condition.sparsity, "achieved_sparsity": numbers["achieved_sparsity"]}
    for pairing in (*PAIRINGS, RANDOM):
        found = features[features["pairing"] == pairing]
        if found.empty:  # the dense cell has no SAE with the seeds of another one
            continue
        alive = found[found["alive"]]
        if set(alive["dense_seed"]) != set(found["dense_seed"]):
            silent = sorted(set(found["dense_seed"]) - set(alive["dense_seed"]))[0]
            raise InputError(f"{cell}: no feature of the dense SAE {silent} is alive; train it on more tokens")
        counts: Row = {
            "n_features": len(alive[["dense_seed", "feature"]].drop_duplicates()),
            "n_saes": alive["dense_seed"].nunique(),
            "n_pairs": len(alive[["dense_seed", "compressed_seed"]].drop_duplicates()),
        }
        rows["survival"] += [{**key, **row, **counts} for row in _survival(alive, params, pairing)]
        if pairing != RANDOM:
            bins, trend = _fragility(alive, params, pairing)
            rows["fragility"] += [{**key, **row, **counts} for row in bins]
            rows["fragility_tests"] += [{**key, **row, **counts} for row in trend]
    return rows


def _series(params: Params, name: str) -> str:
    """What a condition shares with others of its kind, whatever the sparsity: the line it is drawn on."""
    condition = params.pruning(name)
    defaults = {"group": params.prune.group, "sequential": params.prune.sequential}
    differing = [f"{key}={found}" for key, default in defaults.items() if (found := getattr(condition, key)) != default]
    return " ".join([condition.method, *differing])


def _by_dense_sae(alive: pd.DataFrame, columns: list[str]) -> Iterator[pd.DataFrame]:
    """For each dense SAE one row a feature: means of `columns` over the SAEs it is paired with."""
    for _, of_sae in alive.groupby("dense_seed"):
        yield of_sae.groupby("feature")[columns].mean()


def _survival(alive: pd.DataFrame, params: Params, pairing: str) -> Iterator[Row]:
    """Survival of the alive dense features at each tau, with its interval."""
    taus = params.metrics.taus
    found = alive.assign(**{str(tau): alive["mutual_cosine"] >= tau for tau in taus})
    clusters = [sae.to_numpy() for sae in _by_dense_sae(found, [str(tau) for tau in taus])]
    estimates = cluster_bootstrap(clusters, params.metrics.bootstrap_samples, params.metrics.seed)
    for tau, estimate in zip(taus, estimates, strict=True):
        yield {"pairing": pairing, "tau": tau, "survival": estimate.mean, "low": estimate.low, "high": estimate.high}


def _fragility(alive: pd.DataFrame, params: Params, pairing: str) -> tuple[list[Row], list[Row]]:
    """Survival by quintile of dense firing rate at the main tau, and the tests of a trend.

    No rows where a dense SAE has fewer alive features than there are quintiles.
    """
    found = alive.assign(survived=alive["mutual_cosine"] >= MAIN_TAU)
    clusters = [
        Cluster(sae["firing_rate"].to_numpy(), sae["survived"].to_numpy())
        for sae in _by_dense_sae(found, ["firing_rate", "survived"])
    ]
    if min(len(cluster.survived) for cluster in clusters) < BINS:
        return [], []
    measured = measure_fragility(clusters, params.metrics.bootstrap_samples, params.metrics.seed)
    bins: list[Row] = [
        {"pairing": pairing, "quintile": number, "survival": mean, "low": low, "high": high}
        for number, (mean, low, high) in enumerate(measured.quintiles, start=1)
    ]
    gap, low, high = measured.gap
    trend: Row = {
        "pairing": pairing,
        "gap": gap,
        "gap_low": low,
        "gap_high": high,
        "rho_bins": measured.rho_bins,
        "p_bins": measured.p_bins,
        "n_bins": BINS,
        "rho_features": measured.rho_features,
    }
    return bins, [trend]
