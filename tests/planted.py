"""Planted results of the second study, as its stage writes them, by formulas simple enough to check by hand.

Clearly fake: FVU grows by the level squared, features are lost in proportion to what compression costs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from feature_survival.artifacts import Place
from feature_survival.config import Params
from feature_survival.metrics import BOTH, DECODER, ENCODER, PARTS, PRETRAINED, PRUNED, RETRAINED, SAE_SCORES, STANDARD
from feature_survival.metrics.survival import FIXED, OTHER_INIT, OTHER_ORDER, SAME_SEEDS

RETRAINED_FVU = 0.16  # at the first site of the first model
LOST = {BOTH: 1.0, ENCODER: 0.6, DECODER: 0.3}
LATENTS = 400
FEATURES = 200
# Log of the perplexity ratio at 50%, in 4 bits, or whatever a condition asks of its method.
COST = {
    "magnitude": 0.14,
    "wanda": 0.08,
    "random": 1.8,
    "sparsegpt": 0.06,
    "rtn": 0.03,
    "awq": 0.02,
    "svd": 0.4,
    "activation-svd": 0.25,
}


def plant(params: Params, root: Path) -> None:
    """All tables of all models and sites of section `variants` under a root."""
    for model in params.variants.models:
        for site in params.variants.sites:
            for name, table in (
                ("variants", variants_table(params, model, site)),
                ("compressors", compressors_table(params, model, site)),
                ("latents", latents_table(params, model, site)),
            ):
                replant(root, model, site, name, table)


def replant(root: Path, model: str, site: str, name: str, table: pd.DataFrame) -> None:
    """Write one table in the place of another."""
    folder = Place(root, model, site).metrics
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / f"{name}.parquet", index=False)


def log_cost(params: Params, condition: str) -> float:
    """Log of the planted perplexity ratio: grows fast with sparsity, twice that in patterns, 4x a bit less."""
    recipe = params.recipe(condition)
    if recipe.method == "dense":
        return 0.0
    cost = COST[recipe.method]
    if recipe.bits:
        return cost * 4.0 ** (4 - recipe.bits)
    return cost * math.exp(7 * (recipe.sparsity - 0.5)) * (2 if recipe.group != "row" else 1)


def variants_table(params: Params, model: str, site: str) -> pd.DataFrame:
    """FVU of the SAE retrained: .16, 4% more for each further model, half as much again for each further site; of the
    pretrained one 1.25 times; pruned: times 1 + level^2, with magnitude 1 + 2 level^2 (of what that adds, .6 in the
    encoder alone, .3 in the decoder). Dense SAEs of the n-th seed: .15 + .01 n, scaled likewise."""
    study = params.variants
    scale = (1 + 0.04 * study.models.index(model)) * (1 + 0.5 * study.sites.index(site))
    first = study.seeds[0].name

    def row(condition: str, sae: str, kind: str, seed: str, fvu: float, *pruned: Any) -> dict[str, Any]:
        score, part, level = pruned or ("", "", 0.0)
        found = {
            "condition": condition,
            "sae": sae,
            "kind": kind,
            "seed": seed,
            "score": score,
            "part": part,
            "level": level,
            "fvu": fvu * scale,
            "fvu_fitted": fvu * scale - 0.01,
            "l0": params.sae.k - level / 10,
            "share_dead": 0.1 + level / 10,
            "tokens": 1000,
            "ce_without_sae": 3.0,
            "ce_zero": 7.0,
            "ce_sae": 3.0 + fvu * scale,
            "ce_loss_score": 1 - fvu * scale / 4,
            "kl": fvu * scale / 2,
            "splice_tokens": 500,
        }
        if condition == study.condition and part in ("", BOTH):
            found |= {
                "probing_1": 0.75 - level / 10,
                "probing_5": 0.9 - level / (4 if score == "wanda" else 3),
                "n_tasks": 11,
                "absorption": 0.3 if kind == RETRAINED else 0.1 + level / 10,
                "absorption_full": 0.05,
                "n_letters": 6,
                "cause": 0.3 - level / 5,
                "isolation": 0.9,
                "disentanglement": 0.6 - level / 10,
                "n_attributes": 4,
            }
        return found

    rows = [
        row("dense", STANDARD, PRETRAINED, seed.name, 0.15 + 0.01 * number) for number, seed in enumerate(study.seeds)
    ]
    redundancy = list(study.redundancy) if site == study.sites[0] else []
    rows += [row("dense", name, PRETRAINED, first, 0.2) for name in redundancy]
    for condition in study.conditions(site):
        main = condition == study.condition
        for name in [STANDARD, *redundancy] if main else [STANDARD]:
            whole = 1.25 * RETRAINED_FVU
            rows.append(row(condition, name, PRETRAINED, first, whole))
            rows.append(row(condition, name, RETRAINED, first, RETRAINED_FVU))
            for score in SAE_SCORES:
                for part in PARTS if main else [BOTH]:
                    for level in study.levels:
                        lost = level**2 * (2 if score == "magnitude" else 1) * LOST[part]
                        rows.append(row(condition, name, PRUNED, first, whole * (1 + lost), score, part, level))
    return pd.DataFrame(rows)


def compressors_table(params: Params, model: str, site: str) -> pd.DataFrame:
    """Of 200 features, those found again: three quarters, half and a tenth by pairing, fewer as perplexity grows; what
    is only quantized loses half as fast."""
    study = params.variants
    harder = 1 + 0.1 * study.models.index(model)
    rows: list[dict[str, Any]] = []
    for condition in ["dense", *study.conditions(site)]:
        recipe, dense = params.recipe(condition), condition == "dense"
        cost = log_cost(params, condition) * harder
        left = math.exp(-cost / (1 if recipe.sparsity else 2))
        bits = recipe.bits + 0.5 if recipe.bits else 16 * (1 - recipe.sparsity) + (0 if dense else 1)
        row = {
            "condition": condition,
            "bits_per_weight": bits,
            "achieved_sparsity": recipe.sparsity,
            "cross_entropy": 3.0 + cost,
            "jaccard": left,
            f"{FIXED} of": FEATURES,
            FIXED: int(FEATURES * left),
            "fvu_pretrained": 0.2 * (1 + cost),
            "ce_loss_score_pretrained": 0.95 * left,
            "kl_pretrained": 0.1 + cost,
        }
        if not dense:
            row |= {"fvu_retrained": 0.19, "ce_loss_score_retrained": 0.96, "kl_retrained": 0.1}
        for pairing, share in ((SAME_SEEDS, 0.75), (OTHER_ORDER, 0.5), (OTHER_INIT, 0.1)):
            if not dense or pairing != SAME_SEEDS:
                row |= {f"{pairing} of": FEATURES, pairing: int(FEATURES * share * left)}
        rows.append(row)
    return pd.DataFrame(rows)


def latents_table(params: Params, model: str, site: str) -> pd.DataFrame:
    """Norms left: of decoder rows more the more often a latent fires, by the Wanda score above all; of encoder rows
    less the larger the norm; nothing depends on the neighbours. Noise comes from the names of model and site."""
    random = np.random.default_rng([*f"{model}/{site}".encode()])
    order = np.arange(LATENTS)
    norm = random.permutation(order)
    tables = []
    for score in SAE_SCORES:
        for level in params.variants.levels:
            steep = 0.6 if score == "wanda" else 0.1

            def left(by: np.ndarray, slope: float, level: float = level) -> np.ndarray:
                kept = 1 - level**2 + level * slope * (by / LATENTS - 0.5) + random.normal(0, 0.05, LATENTS)
                return np.clip(kept, 0, 1)

            columns = {
                "latent": order,
                "firing_rate": (order + 1) / (2 * LATENTS),
                "mean_activation": np.full(LATENTS, 2.0),
                "encoder_norm": 1 + norm / LATENTS,
                "neighbour_cosine": random.uniform(0.2, 0.9, LATENTS),
                "decoder_left": left(order, steep),
                "encoder_left": left(norm, -0.2),
                "firing_rate_pruned": (order + 1) / (3 * LATENTS),
            }
            tables.append(pd.DataFrame(columns).assign(condition=params.variants.condition, score=score, level=level))
    return pd.concat(tables, ignore_index=True)
