"""Study B: variants of an SAE by site, the sweep over its sparsity, every compressor, and what SAE pruning removes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from feature_survival.artifacts import Place, read_parquet
from feature_survival.config import Params
from feature_survival.metrics import BOTH, PRETRAINED, PRUNED, RETRAINED, STANDARD
from feature_survival.metrics.quintiles import BINS, quintiles
from feature_survival.metrics.survival import FIXED, PAIRINGS
from feature_survival.recipes import METHOD_KEYS, PRUNING
from feature_survival.stats import binomial, cluster_bootstrap, spearman
from feature_survival.summarize.measured import series_of

TABLES = {
    "variants_by_site": "one row a model, site, condition and SAE: pretrained, retrained, or pruned in both parts",
    "sae_pruning_sweep": "one row a model, site, score, part and level of pruning, on the main condition",
    "compressors": "one row a model, site, condition and pairing",
    "matched": "one row a compressor, quantity and what it is matched by: beside Wanda, interpolated",
    "latents": "one row a model, site, score, level, predictor and fifth of it: what pruning left of the latents",
    "latents_tests": "one row a model, site, score, level and predictor",
}
RUNGS = ("dense", "wanda")  # series whose levels the other compressors are matched with
MATCHED_BY = {"perplexity_ratio": "perplexity", "bits_per_weight": "bits a weight"}
FVU_RATIO = "FVU ratio"
PREDICTORS = {"firing_rate": "firing rate", "encoder_norm": "encoder norm", "neighbour_cosine": "nearest decoder row"}
BESIDE = ["fvu", "fvu_fitted", "ce_loss_score", "absorption", "disentanglement"]  # what variants are held beside
LEFT = ("decoder_left", "encoder_left")
WHERE = ["model", "site", "condition", "sae"]  # what the variants of one row are compared within


def tables(params: Params, root: Path) -> dict[str, pd.DataFrame]:
    """All tables of the second study; InputError names a file that is missing."""
    places = [Place(root, model, site) for model in params.variants.models for site in params.variants.sites]
    variants = _read(places, "variants")
    compressors = _compressors(params, _read(places, "compressors"))
    latents = _read(places, "latents")
    measured = _with_ratios(variants)
    swept = measured[(measured["condition"] == params.variants.condition) & (measured["sae"] == STANDARD)]
    bins, tests = _latents(params, latents)
    return {
        "variants_by_site": measured[measured["part"].isin(["", BOTH])],
        "sae_pruning_sweep": swept.assign(most_sensitive=_most_sensitive(swept)),
        "compressors": compressors,
        "matched": _matched(compressors),
        "latents": bins,
        "latents_tests": tests,
    }


def _read(places: list[Place], name: str) -> pd.DataFrame:
    """One table of all places, led by model and site."""
    frames = []
    for place in places:
        frame = read_parquet(place.metrics / f"{name}.parquet")
        frame.insert(0, "model", place.model)
        frame.insert(1, "site", place.site)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _with_ratios(variants: pd.DataFrame) -> pd.DataFrame:
    """Variants named as the paper names them, beside others on the same compressed model.

    `<score>_of_retrained`, `<score>_of_pretrained`; `fvu_ratio` to the retrained SAE's FVU; `ce_loss_score_short`, how
    far the CE-loss score falls below the retrained one's; `fvu_gap`, FVU off the tokens an SAE was trained or
    calibrated on minus FVU on them; `<score>_seed_range`, over the dense model's SAEs: how much two of equal training
    differ.
    """
    levels = (100 * variants["level"]).round().astype(int).astype(str)
    named = variants["kind"].where(variants["kind"] != PRUNED, "pruned-" + levels)
    out = variants.assign(variant=named, fvu_gap=variants["fvu"] - variants["fvu_fitted"])
    compressed = variants[variants["condition"] != "dense"]
    for kind in (RETRAINED, PRETRAINED):
        others = compressed[compressed["kind"] == kind].set_index(WHERE)[BESIDE].add_suffix(f"_of_{kind}")
        out = out.join(others, on=WHERE)
    dense = variants[(variants["condition"] == "dense") & (variants["sae"] == STANDARD)]
    by_place = dense.groupby(["model", "site"])[["fvu", "ce_loss_score"]]
    out = out.join((by_place.max() - by_place.min()).add_suffix("_seed_range"), on=["model", "site"])
    return out.assign(
        fvu_ratio=out["fvu"] / out["fvu_of_retrained"],
        ce_loss_score_short=out["ce_loss_score_of_retrained"] - out["ce_loss_score"],
    )


def _most_sensitive(swept: pd.DataFrame) -> pd.Series:
    """Whether a row's site is the one where this pruning costs the model the most of its SAE's CE-loss score."""
    drop = swept["ce_loss_score_of_pretrained"] - swept["ce_loss_score"]
    most = drop.groupby([swept[name] for name in ("model", "kind", "score", "part", "level")]).transform("max")
    return drop == most


def _compressors(params: Params, found: pd.DataFrame) -> pd.DataFrame:
    """Every compressed model, once a pairing: what it costs and what becomes of the features and of the SAE."""
    dense = found[found["condition"] == "dense"].set_index(["model", "site"])[["cross_entropy", "fvu_pretrained"]]
    found = found.join(dense, on=["model", "site"], rsuffix="_of_dense")
    own = {model: params.for_model(model) for model in found["model"].unique()}
    rows = []
    for row in found.to_dict("records"):
        recipe = own[row["model"]].recipe(row["condition"])
        described = {
            "model": row["model"],
            "site": row["site"],
            "condition": row["condition"],
            "method": recipe.method,
            "group": recipe.group if METHOD_KEYS[recipe.method] == PRUNING else "",
            "rung": series_of(own[row["model"]], row["condition"]) in RUNGS,
            "bits_per_weight": row["bits_per_weight"],
            "achieved_sparsity": row["achieved_sparsity"],
            "perplexity": math.exp(row["cross_entropy"]),
            "perplexity_ratio": math.exp(row["cross_entropy"] - row["cross_entropy_of_dense"]),
            "fvu_ratio": row["fvu_pretrained"] / row["fvu_pretrained_of_dense"],
            "fvu_ratio_retrained": row["fvu_retrained"] / row["fvu_pretrained_of_dense"],
            "ce_loss_score": row["ce_loss_score_pretrained"],
            "ce_loss_score_short": row["ce_loss_score_retrained"] - row["ce_loss_score_pretrained"],
            "kl": row["kl_pretrained"],
            "jaccard": row["jaccard"],
        }
        for pairing in (*PAIRINGS, FIXED):
            count, n = row.get(pairing, math.nan), row.get(f"{pairing} of", math.nan)
            if not math.isnan(count):
                share, low, high = binomial(int(count), int(n))
                rows.append(
                    {**described, "pairing": pairing, "survival": share, "low": low, "high": high, "n_features": int(n)}
                )
    return pd.DataFrame(rows)


def _matched(compressors: pd.DataFrame) -> pd.DataFrame:
    """Each compressor beside Wanda pruned to the same perplexity, and to the same bits: log-linear between its levels,
    of which the dense model is the first.

    Quantities: survival of each pairing, and the FVU ratio of the dense model's SAE. No value where Wanda's levels do
    not reach.
    """
    quantities = [(pairing, pairing, "survival") for pairing in (*PAIRINGS, FIXED)] + [(FVU_RATIO, FIXED, "fvu_ratio")]
    frames = []
    for _, here in compressors.groupby(["model", "site"], sort=False):
        for quantity, pairing, column in quantities:
            of_pairing = here[here["pairing"] == pairing]
            rungs, others = of_pairing[of_pairing["rung"]], of_pairing[~of_pairing["rung"]]
            if len(rungs) < 2:
                continue
            for by, label in MATCHED_BY.items():
                ladder = rungs.sort_values(by)
                wanda = np.interp(np.log(others[by]), np.log(ladder[by]), ladder[column], left=np.nan, right=np.nan)
                frame = others[["model", "site", "condition", "method", "group"]]
                frame = frame.assign(matched_by=label, at=others[by], quantity=quantity, value=others[column])
                frames.append(frame.assign(wanda=wanda, difference=others[column] - wanda))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _latents(params: Params, latents: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Share of squared norm that pruning left, by fifths of each predictor, and Spearman over latents."""
    bins, tests = [], []
    metrics = params.metrics
    for key, of_way in latents.groupby(["model", "site", "score", "level"], sort=False):
        described = dict(zip(["model", "site", "score", "level"], key, strict=True))
        for predictor, label in PREDICTORS.items():
            x = of_way[predictor].to_numpy()
            row = {**described, "predictor": label, "n_latents": len(x)}
            tests.append({**row, **{f"rho_{left}": spearman(x, of_way[left].to_numpy()) for left in LEFT}})
            number = quintiles(x)
            for fifth in range(BINS):
                members = of_way[number == fifth]
                found = cluster_bootstrap([members[list(LEFT)].to_numpy()], metrics.bootstrap_samples, metrics.seed)
                for left, (mean, low, high) in zip(LEFT, found, strict=True):
                    part = left.removesuffix("_left")
                    bins.append(
                        {
                            **row,
                            "fifth": fifth + 1,
                            "part": part,
                            "left": mean,
                            "low": low,
                            "high": high,
                            "n": len(members),
                        }
                    )
    return pd.DataFrame(bins), pd.DataFrame(tests)
