"""RQ1: how alike are SAEs of the same dense model that differ in their seeds, and how alike are random dictionaries?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from feature_survival.metrics.survival import FEATURE
from feature_survival.stats import cluster_bootstrap
from feature_survival.summarize.measured import Measured, Row, by_sae

MUTUAL, ONE_TO_ONE, BOTH, MEAN = "mutual nearest", "one to one", "decoder and encoder", "mean cosine"


def rows(measured: Measured) -> Iterator[tuple[str, Row]]:
    """Share of alive features matched, by each kind of match at each tau; and the mean matched cosine (PW-MCC)."""
    if not measured.is_dense:
        return
    taus = measured.params.metrics.taus
    for pairing in measured.pairings():
        found = measured.matches[measured.matches["pairing"] == pairing]
        decoder, encoder = found["matched_cosine"], found["matched_encoder_cosine"]
        columns: dict[tuple[str, float], pd.Series] = {(MEAN, np.nan): decoder}
        for tau in taus:
            columns[MUTUAL, tau] = found["mutual_cosine"] >= tau
            columns[ONE_TO_ONE, tau] = decoder >= tau
            columns[BOTH, tau] = (decoder >= tau) & (encoder >= tau)
        names = [f"{kind} {tau}" for kind, tau in columns]
        of_pair = found[FEATURE].assign(**dict(zip(names, columns.values(), strict=True)))
        of_feature = of_pair.groupby(FEATURE).mean().reset_index()
        clusters = [np.nan_to_num(cluster) for cluster in by_sae(of_feature, names)]  # no free partner: not matched
        metrics = measured.params.metrics
        estimates = cluster_bootstrap(clusters, metrics.bootstrap_samples, metrics.seed)
        counts = measured.counts(pairing)
        for (kind, tau), (value, low, high) in zip(columns, estimates, strict=True):
            row: Row = {"model": measured.cell.model, "pairing": pairing, "match": kind, "tau": tau}
            yield "stability", {**row, "value": value, "low": low, "high": high, **counts}
