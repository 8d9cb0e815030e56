"""Figures of the second study: which SAE explains a compressed model, and which compressors keep features."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import DENSE, FAMILIES, at_first_site, by_family
from feature_survival.metrics import PARTS, PRETRAINED, PRUNED, RETRAINED, SAE_SCORES, STANDARD
from feature_survival.metrics.survival import FIXED, PAIRINGS
from feature_survival.report.chart import (
    DASHED,
    GREY,
    MARKS,
    SOLID,
    Chart,
    each,
    levels,
    looks_of,
    points_of,
    rows_by_pairing,
)
from feature_survival.thresholds import KEPT, MAIN_TAU, VIABLE


def variants_by_site(results: Path) -> Chart:
    """Study B: variants of an SAE on one compressed model."""
    rows = {
        "fvu": "FVU",
        "ce_loss_score": "CE-loss score",
        "absorption": "absorption (mean fraction)",
        "disentanglement": "disentanglement score",
        "probing_5": "accuracy of 5-latent probes",
    }
    keys = ["model", "site", "condition", "sae", "kind", "variant", "score", "level", "l0", "tokens", "n_tasks"]
    table = read_csv(results / "variants_by_site.csv", [*keys, *rows])
    table = table[(table["sae"] == STANDARD) & table["n_tasks"].notna()]
    pruned = table[table["kind"] == PRUNED].sort_values("level")
    order = [PRETRAINED, RETRAINED, *pruned["variant"].unique()]
    score = table["score"].fillna("")
    line = [f"{model}, {by}" if by else model for model, by in zip(table["model"], score, strict=True)]
    points = [
        points_of(
            table, method=score, row=row, line=line, x=table["variant"].map(order.index), y=table[row],
            n=each("{variant} SAE on {condition}; L0 {l0:.1f}; {tokens} tokens", table),
        )
        for row in rows
    ]  # fmt: skip
    looks: dict[str, tuple[int, str]] = {}
    for number, model in enumerate(table["model"].unique()):
        styles = {model: MARKS} | {f"{model}, {by}": SOLID if by == "wanda" else DASHED for by in SAE_SCORES}
        looks |= {name: (number % GREY, style) for name, style in styles.items()}
    on = ", ".join(table["condition"].unique())
    says = f"The dense model's SAE, one retrained, and the dense one's pruned by a score, all on {on}; one SAE a point."
    return Chart("variants", "Study B: which SAE explains a compressed model?", says, ("variants_by_site",),
                 "SAE on the compressed model", rows, pd.concat(points), looks, [], "site", tuple(order))  # fmt: skip


def sae_pruning_sweep(results: Path) -> Chart:
    """Study B: how much of an SAE may go."""
    keys = ["model", "site", "condition", "kind", "score", "part", "level", "tokens", "fvu_ratio"]
    table = read_csv(results / "sae_pruning_sweep.csv", keys)
    table = table[table["kind"] == PRUNED]
    line = [f"{part}, {score}" for part, score in table[["part", "score"]].itertuples(index=False)]
    points = points_of(
        table, method=table["score"], row=table["model"], line=line, x=100 * table["level"], y=table["fvu_ratio"],
        n=each("on {condition}; {tokens} tokens", table),
    )  # fmt: skip
    rows = {model: f"{model}: FVU / FVU of the retrained SAE [log scale]" for model in table["model"].unique()}
    looks = _looks_by_part()
    says = "The dense model's SAE, its own weights pruned, beside the SAE retrained on the compressed model (1)."
    references = [*levels(1, "retrained", *rows), *levels(VIABLE, "limit", *rows)]
    return Chart("sweep", "Study B: how much of an SAE may go?", says, ("sae_pruning_sweep",),
                 "weights pruned [% of the part]", rows, points, looks, references, "site", log="y")  # fmt: skip


def _looks_by_part() -> dict[str, tuple[int, str]]:
    """Of lines named by the part of an SAE that is pruned and the score: a colour a part, a style a score."""
    return {
        f"{part}, {score}": (number, SOLID if score == "wanda" else DASHED)
        for number, part in enumerate(PARTS)
        for score in SAE_SCORES
    }


def compressors(results: Path) -> Chart:
    """Beyond Wanda: other ways to compress."""
    keys = ["model", "site", "condition", "method", "group", "perplexity_ratio", "fvu_ratio", "pairing", "n_features"]
    table, _ = at_first_site(read_csv(results / "compressors.csv", [*keys, "survival", "low", "high"]))
    table = table[table["method"] != DENSE]
    family = table["condition"].map(by_family(table))
    cost = (100 * (table["perplexity_ratio"] - 1)).clip(lower=0.1)
    given = {"line": family, "x": cost}
    behind = "{condition}: {n_features} features; perplexity x {perplexity_ratio:.3f}"
    points = points_of(table, row=table["pairing"], y=table["survival"], n=each(behind, table), **given)
    fixed = table["pairing"] == FIXED
    fvu = points_of(table, row="FVU", y=table["fvu_ratio"], low=None, high=None, n=each(behind, table), **given)[fixed]
    rows = rows_by_pairing(f"survival at tau {MAIN_TAU}", *PAIRINGS)
    rows |= {FIXED: f"correlation > {KEPT} ({FIXED})", "FVU": "FVU / FVU on the dense model"}
    found = pd.concat([points, fvu])
    says = "Every way to compress a model, by what it costs in perplexity: SparseGPT, patterns, quantization, low rank."
    return Chart("compressors", "Beyond Wanda: other compressors", says, ("compressors", "matched"),
                 "perplexity above dense [%, log scale; 0.1 or less at 0.1]",
                 {row: label for row, label in rows.items() if row in set(found["row"])}, found,
                 looks_of(FAMILIES, MARKS), levels(VIABLE, "viable below", "FVU"), log="x")  # fmt: skip


def latents(results: Path) -> Chart:
    """What pruning an SAE takes from whom."""
    keys = ["model", "site", "score", "level", "predictor", "part", "fifth", "left", "low", "high", "n"]
    table, _ = at_first_site(read_csv(results / "latents.csv", keys))
    table = table[table["level"].isin(sorted(table["level"].unique(), key=lambda level: abs(level - 0.5))[:1])]
    line = [f"{part}, {score}" for part, score in table[["part", "score"]].itertuples(index=False)]
    points = points_of(
        table, method=table["score"], row=table["predictor"], line=line, x=table["fifth"], y=table["left"],
        n=each("{n} latents; {level:.0%} of weights pruned", table),
    )  # fmt: skip
    looks = {name: look for name, look in _looks_by_part().items() if name in line}
    rows = {name: f"share of squared norm left (by {name})" for name in table["predictor"].unique()}
    says = "What is left of a latent's weights when its SAE is pruned, by fifth of what may predict it."
    return Chart("latents", "Study B: whom does pruning an SAE hit?", says, ("latents_tests", "latents"),
                 "fifth of latents (1 = lowest)", rows, points, looks, [])  # fmt: skip


SECOND = (variants_by_site, sae_pruning_sweep, compressors, latents)
