"""RQ2: which share of the dense model's alive features is found again after pruning, and by which method more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from feature_survival.metrics.survival import FEATURE, FIXED, survival_column
from feature_survival.stats import cluster_bootstrap, cluster_mean, cluster_replicates, interval
from feature_survival.summarize.measured import Measured, Row, by_sae, count


def rows(measured: Measured) -> Iterator[tuple[str, Row]]:
    """Survival for each pairing and tau, with its interval."""
    metrics = measured.params.metrics
    for pairing in measured.pairings():
        columns = [survival_column(pairing, tau) for tau in metrics.taus]
        clusters = list(by_sae(measured.paired(pairing), columns))
        estimates = cluster_bootstrap(clusters, metrics.bootstrap_samples, metrics.seed)
        counts = measured.counts(pairing)
        for tau, (survival, low, high) in zip(metrics.taus, estimates, strict=True):
            row: Row = {**measured.key, "pairing": pairing, "tau": tau}
            yield "survival", {**row, "survival": survival, "low": low, "high": high, **counts}


def ratios(grid: list[Measured]) -> Iterator[Row]:
    """Survival under Wanda over survival under magnitude, cells of one model and sparsity, at the main tau.

    Both methods are measured on the same dense features, which are resampled together. Infinite where nothing
    survives magnitude pruning, NaN where nothing survives either. Last the fixed dictionary: the ratio of the shares of
    features that are kept.
    """
    cells = {(cell.cell.model, cell.key["series"], cell.key["sparsity"]): cell for cell in grid}
    for (model, series, sparsity), wanda in cells.items():
        magnitude = cells.get((model, "magnitude", sparsity))
        if series != "wanda" or magnitude is None:
            continue
        metrics = wanda.params.metrics
        for pairing in [*wanda.pairings(), FIXED]:
            both = wanda.survived(pairing).merge(magnitude.survived(pairing), on=FEATURE)
            clusters = list(by_sae(both, ["survived_x", "survived_y"]))
            means = cluster_mean(clusters)
            replicates = cluster_replicates(clusters, metrics.bootstrap_samples, metrics.seed)
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn = replicates[:, 0] / replicates[:, 1]
                ratio = interval(means[0] / means[1], drawn[~np.isnan(drawn)])
            row: Row = {"model": model, "sparsity": sparsity, "pairing": pairing}
            yield {**row, "ratio": ratio.mean, "low": ratio.low, "high": ratio.high, **count(both)}
