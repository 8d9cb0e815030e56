"""Stage `summarize`: all cells' metrics as tidy CSVs in `results/`, which git tracks and figures read.

`cells.csv` one row a cell · `saes.csv` one row an SAE · `survival.csv` one row a cell, pairing and tau ·
`training.csv` losses of the base models
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from feature_survival.artifacts import Cell, atomic_file, read_json, training_log
from feature_survival.config import InputError, Params
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
    cells, saes, survival = [], [], []
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
        survival += [{**key, **sparsity, **row} for row in _survival(features, params)]
    training = [pd.read_csv(training_log(root, model)).assign(model=model) for model in params.study.models]
    for name, table in (
        ("cells", pd.DataFrame(cells)),
        ("saes", pd.DataFrame(saes)),
        ("survival", pd.DataFrame(survival)),
        ("training", pd.concat(training)),
    ):
        with atomic_file(root / "results" / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def _survival(features: pd.DataFrame, params: Params) -> list[dict[str, object]]:
    """Survival of the alive dense features for each pairing and tau, with its cluster-bootstrap interval."""
    taus = params.metrics.taus
    rows: list[dict[str, object]] = []
    living = features[features["alive"]]
    for pairing in (*PAIRINGS, RANDOM):
        of_pairing = living[living["pairing"] == pairing]
        if of_pairing.empty:
            continue
        clusters = [
            group["mutual_cosine"].to_numpy()[:, None] >= taus
            for _, group in of_pairing.groupby(["dense_seed", "compressed_seed"])
        ]
        estimates = cluster_bootstrap(clusters, params.metrics.bootstrap_samples, params.metrics.seed)
        for tau, estimate in zip(taus, estimates, strict=True):
            shares = {"survival": estimate.mean, "low": estimate.low, "high": estimate.high}
            counts = {"n_features": len(of_pairing), "n_pairs": len(clusters)}
            rows.append({"pairing": pairing, "tau": tau, **shares, **counts})
    return rows
