"""RQ3: the dense model's SAE on the compressed model, beside the SAE retrained on it; and the fixed dictionary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from feature_survival.metrics import RETRAINED, TRANSFERRED
from feature_survival.stats import cluster_bootstrap
from feature_survival.summarize.measured import Measured, Row, by_sae
from feature_survival.thresholds import DAMAGED, KEPT, VIABLE

SEEDS = ["init_seed", "data_seed"]


def rows(measured: Measured) -> Iterator[tuple[str, Row]]:
    """Mean over SAEs, with the lowest and highest of them; for the dense model's also what became of its features,
    and how far its CE-loss score falls short of that of the SAE retrained with the same seeds.

    `fvu_ratio` is to the FVU that the dense SAE of the same seeds has on the dense model.
    """
    metrics = measured.params.metrics
    transferred = pd.DataFrame(measured.numbers["transfer"])
    retrained = pd.DataFrame(measured.numbers["saes"]).merge(
        transferred[[*SEEDS, "dense_fvu", "ce_loss_score"]], on=SEEDS, suffixes=("", "_of_dense"), validate="one_to_one"
    )
    correlation = list(by_sae(measured.features, ["correlation"]))
    kept, damaged = cluster_bootstrap(
        [np.hstack([of_sae > KEPT, of_sae < DAMAGED]) for of_sae in correlation],
        metrics.bootstrap_samples,
        metrics.seed,
    )
    fixed: Row = {
        "ce_loss_score_short": (retrained["ce_loss_score"] - retrained["ce_loss_score_of_dense"]).mean(),
        "jaccard": transferred["jaccard"].mean(),
        "correlation": float(np.median(np.concatenate(correlation))),
        **{"kept": kept.mean, "kept_low": kept.low, "kept_high": kept.high},
        **{"damaged": damaged.mean, "damaged_low": damaged.low, "damaged_high": damaged.high},
        "n_features": len(measured.features),
    }
    for kind, saes, further in ((TRANSFERRED, transferred, fixed), (RETRAINED, retrained, {})):
        saes["fvu_ratio"] = saes["fvu"] / saes["dense_fvu"]
        row: Row = {**measured.key, "sae": kind, "n_saes": len(saes)}
        for name in ("fvu", "fvu_ratio", "ce_loss_score", "kl"):
            row |= {name: saes[name].mean(), f"{name}_low": saes[name].min(), f"{name}_high": saes[name].max()}
        yield (
            "transfer",
            {**row, "l0": saes["l0"].mean(), "viable": bool(saes["fvu_ratio"].mean() <= VIABLE), **further},
        )
