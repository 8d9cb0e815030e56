"""Stage `summarize`: all cells' metrics as tidy CSVs in `results/`, which git tracks and figures read.

`cells.csv` one row a cell · `saes.csv` one row an SAE · `survival.csv` one row a cell, pairing and tau ·
`fragility.csv` one row a cell, pairing and quintile of firing rate · `fragility_tests.csv` one row a cell and pairing ·
`training.csv` losses of the base models
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from feature_survival.artifacts import Cell, atomic_file, read_csv, read_json, training_log
from feature_survival.config import MAIN_TAU, InputError, Params
from feature_survival.metrics.fragility import BINS, Cluster, measure_fragility
from feature_survival.metrics.survival import PAIRINGS, RANDOM
from feature_survival.stats import cluster_bootstrap


def run(params: Params, root: Path) -> None:
    """Write all tables. A cell of the grid whose metrics are absent is an error that names it."""
    grid = [Cell(root, model, condition) for model in params.study.models for condition in params.study.conditions]
    absent = [str(cell) for cell in grid if not (cell.metrics / "metrics.json").exists()]
    if absent:
        raise InputError(
            f"results: {len(absent)} of {len(grid)} cells have no metrics: {', '.join(absent)}; run dvc repro"
        )
    cells, saes, survival, fragility, tests = [], [], [], [], []
    for cell in grid:
        numbers = read_json(cell.metrics / "metrics.json")
        condition = params.pruning(cell.condition)
        key = {"model": cell.model, "condition": cell.condition, "method": condition.method}
        own = [{**key, **sae} for sae in numbers.pop("saes")]
        means = pd.DataFrame(own)[["fvu", "l0", "share_dead", "ce_sae", "ce_loss_score"]].mean().to_dict()
        cells.append({**key, "sparsity": condition.sparsity, **numbers, **means, "n_saes": len(own)})
        saes += own
        sparsity = {"sparsity": condition.sparsity, "achieved_sparsity": numbers["achieved_sparsity"]}
        features = pd.read_parquet(cell.metrics / "features.parquet")
        features = features[features["alive"]]
        survival += [{**key, **sparsity, **row} for row in _survival(features, params)]
        bins, trends = _fragility(features, params)
        fragility += [{**key, **sparsity, **row} for row in bins]
        tests += [{**key, **sparsity, **row} for row in trends]
    training = [read_csv(training_log(root, model)).assign(model=model) for model in params.study.models]
    for name, table in (
        ("cells", pd.DataFrame(cells)),
        ("saes", pd.DataFrame(saes)),
        ("survival", pd.DataFrame(survival)),
        ("fragility", pd.DataFrame(fragility)),
        ("fragility_tests", pd.DataFrame(tests)),
        ("training", pd.concat(training)),
    ):
        with atomic_file(root / "results" / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def _pairs(features: pd.DataFrame, pairing: str) -> list[pd.DataFrame]:
    """The alive features of each pair of SAEs that stands in a pairing."""
    of_pairing = features[features["pairing"] == pairing]
    return [group for _, group in of_pairing.groupby(["dense_seed", "compressed_seed"])]


def _survival(features: pd.DataFrame, params: Params) -> list[dict[str, object]]:
    """Survival of the alive dense features for each pairing and tau, with its cluster-bootstrap interval."""
    taus = params.metrics.taus
    rows: list[dict[str, object]] = []
    for pairing in (*PAIRINGS, RANDOM):
        clusters = [pair["mutual_cosine"].to_numpy()[:, None] >= taus for pair in _pairs(features, pairing)]
        if not clusters:
            continue
        estimates = cluster_bootstrap(clusters, params.metrics.bootstrap_samples, params.metrics.seed)
        for tau, estimate in zip(taus, estimates, strict=True):
            shares = {"survival": estimate.mean, "low": estimate.low, "high": estimate.high}
            counts = {"n_features": sum(map(len, clusters)), "n_pairs": len(clusters)}
            rows.append({"pairing": pairing, "tau": tau, **shares, **counts})
    return rows


def _fragility(features: pd.DataFrame, params: Params) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Survival by quintile of dense firing rate for each pairing, and the tests of a trend, at the main tau."""
    bins: list[dict[str, object]] = []
    tests: list[dict[str, object]] = []
    for pairing in PAIRINGS:
        clusters = [
            Cluster(pair["firing_rate"].to_numpy(), pair["mutual_cosine"].to_numpy() >= MAIN_TAU)
            for pair in _pairs(features, pairing)
        ]
        if not clusters:
            continue
        found = measure_fragility(clusters, params.metrics.bootstrap_samples, params.metrics.seed)
        counts = {"n_features": found.n_features, "n_pairs": len(clusters)}
        for number, estimate in enumerate(found.quintiles, start=1):
            shares = {"survival": estimate.mean, "low": estimate.low, "high": estimate.high}
            bins.append({"pairing": pairing, "quintile": number, **shares, **counts})
        gap = {"gap": found.gap.mean, "gap_low": found.gap.low, "gap_high": found.gap.high}
        trend = {"rho_bins": found.rho_bins, "p_bins": found.p_bins, "n_bins": BINS, "rho_features": found.rho_features}
        tests.append({"pairing": pairing, **gap, **trend, **counts})
    return bins, tests
