"""Models, cells and SAEs as they are."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from feature_survival.summarize.measured import Measured, Row

QUALITY = ["fvu", "l0", "share_dead", "ce_sae", "ce_loss_score", "kl"]


def rows(measured: Measured) -> Iterator[tuple[str, Row]]:
    """The cell, its SAEs, and of the dense cell what the model is and where it is read."""
    numbers = {name: value for name, value in measured.numbers.items() if name not in ("saes", "transfer")}
    saes = measured.numbers["saes"]
    quality: Row = {**dict(pd.DataFrame(saes)[QUALITY].mean()), "n_saes": len(saes)}
    ratio = numbers["perplexity"] / measured.dense_numbers["perplexity"]
    yield "cells", {**measured.key, **numbers, "perplexity_ratio": ratio, **quality}
    for sae in saes:
        yield "saes", {**measured.key, **sae}
    if measured.is_dense:
        params = measured.params
        model = params.model(measured.cell.model)
        yield (
            "models",
            {
                "model": measured.cell.model,
                "architecture": model.architecture,
                "parameters": numbers["parameters"],
                "vocabulary": model.vocabulary,
                "training_tokens": model.weights.training.tokens if model.weights.training else None,
                "perplexity": numbers["perplexity"],
                "evaluation_tokens": numbers["tokens"],
                "site": str(model.site(params.study.site)),
                "site_width": numbers["site_width"],
                "sae_width": params.sae.expansion * numbers["site_width"],
                "sae_tokens": params.activations.sae_windows * (params.window - 1) * params.sae.epochs,
                **quality,
                "n_alive": len(measured.features),
            },
        )
