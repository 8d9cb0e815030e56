"""How well both models speak, and what becomes of an SAE's features from one to the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from feature_survival.metrics.language import mean_cross_entropy
from feature_survival.metrics.reconstruction import alive
from feature_survival.metrics.transfer import Transfer
from feature_survival.progress import progress
from feature_survival.schema import InputError
from feature_survival.stats import Estimate, binomial
from feature_survival.thresholds import DAMAGED, KEPT, VIABLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BINS = 20  # of the histogram of correlations, from 0 to 1; those below 0 stand in the first


def language(models: Mapping[str, PreTrainedModel], tokens: Tensor, batch: int) -> dict[str, Any]:
    """Cross-entropy (nats) and perplexity of each model on the same windows, and the ratio of the second's to the
    first's. InputError where a model predicts nothing finite."""
    found: dict[str, Any] = {}
    for name, model in progress(models.items(), "perplexity", len(models), "model"):
        entropy = mean_cross_entropy(model, tokens, batch)
        if not entropy < 700:  # also NaN
            raise InputError(
                f"--{name}: cross-entropy on the text is {entropy} in {model.dtype}; try --dtype float32, or the "
                "checkpoint is broken"
            )
        found[name] = {"cross_entropy": entropy, "perplexity": math.exp(entropy)}
    base, compressed = (found[name]["cross_entropy"] for name in models)
    return {**found, "ratio": math.exp(compressed - base), "tokens": tokens.shape[0] * (tokens.shape[1] - 1)}


def fixed_dictionary(transfer: Transfer, rows: int) -> dict[str, Any]:
    """What becomes of an SAE's features from one model to the other, on `rows` tokens: nothing is trained again.

    InputError where no feature fires often enough to be counted.
    """
    lives = alive(transfer.dense.firing_rate, rows)
    count = int(lives.sum())
    if count == 0:
        raise InputError(
            f"--sae: none of its {len(lives)} features fires on 10 of the {rows:,} tokens; is it an SAE of this model "
            "and site? or give more text"
        )
    correlation = transfer.correlation[lives]
    kept, damaged = int((correlation > KEPT).sum()), int((correlation < DAMAGED).sum())
    bins = (correlation.clamp(0, 1 - 1e-9) * BINS).long().bincount(minlength=BINS)
    return {
        "alive": count,
        "features": len(lives),
        "kept": _share(kept, count),
        "changed": _share(count - kept - damaged, count),
        "damaged": _share(damaged, count),
        "jaccard": transfer.jaccard,
        "median_correlation": correlation.median().item(),
        "histogram": bins.tolist(),
        "fvu_ratio": transfer.compressed.fvu / transfer.dense.fvu if transfer.dense.fvu > 0 else None,
        "viable": transfer.compressed.fvu <= VIABLE * transfer.dense.fvu,
    }


def _share(count: int, n: int) -> dict[str, float]:
    share: Estimate = binomial(count, n)
    return {"count": count, "of": n, "share": share.mean, "low": share.low, "high": share.high}
