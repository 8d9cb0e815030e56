"""Figures of the first study's five questions, with their controls."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import DENSE
from feature_survival.metrics import RETRAINED, TRANSFERRED
from feature_survival.metrics.survival import FIXED, OTHER_INIT, OTHER_ORDER, PAIRINGS, RANDOM, SAME_SEEDS
from feature_survival.report.chart import (
    DASHED,
    GREY,
    MARKS,
    SOLID,
    THIN,
    Chart,
    each,
    levels,
    looks_of,
    points_of,
    rows_by_pairing,
    series_of,
    with_taus,
)
from feature_survival.thresholds import KEPT, MAIN_TAU, VIABLE

CEILING = "two dense SAEs (ceiling)"
SPARSITY = "achieved sparsity [%]"
BEHIND = "{n_features} features of {n_saes} dense SAEs"
PAIRS = BEHIND + ", {n_pairs} pairs"


def stability(results: Path) -> Chart:
    """RQ1."""
    keys = ["model", "pairing", "match"]
    table = read_csv(results / "stability.csv", [*keys, "tau", "value", "low", "high", "n_features", "n_pairs"])
    table = with_taus(table, keys, "value")
    kinds = [*table.loc[table["tau"].notna(), "match"].unique(), *table.loc[table["tau"].isna(), "match"].unique()]
    points = points_of(
        table, line=table["pairing"], x=table["match"].map(kinds.index), y=table["value"],
        n=each(PAIRS + "{taus}", table),
    )  # fmt: skip
    says = (
        "SAEs of one dense model that differ only in their seeds, matched in several ways; random dictionaries below."
    )
    label = f"share matched at tau {MAIN_TAU} (or mean cosine)"
    looks = {**looks_of([OTHER_ORDER, OTHER_INIT], MARKS), RANDOM: (GREY, MARKS)}
    title = "RQ1: how stable are features from seed to seed?"
    return Chart("stability", title, says, ("stability",), "how features are matched", {"": label}, points, looks, [],
                 categories=tuple(kinds))  # fmt: skip


def survival(results: Path) -> Chart:
    """RQ2."""
    keys = ["model", "condition", "pairing"]
    table = read_csv(results / "survival.csv", [*keys, "series", "achieved_sparsity", "tau", "survival", "low", "high"])
    table = with_taus(table, keys, "survival")
    dense, rest = table[table["series"] == DENSE], table[table["series"] != DENSE]
    ends = [
        {"model": row["model"], "row": pairing, "y": row["survival"],
         "label": "floor" if row["pairing"] == RANDOM else "ceiling"}
        for row in dense.to_dict("records")
        for pairing in (PAIRINGS if row["pairing"] == RANDOM else [row["pairing"]])
    ]  # fmt: skip
    points = points_of(
        rest, method=rest["series"], row=rest["pairing"], line=rest["series"], x=100 * rest["achieved_sparsity"],
        y=rest["survival"], n=each("{condition}: " + PAIRS + "{taus}", rest),
    )  # fmt: skip
    says = (
        "Share of a dense model's alive features found again in an SAE trained on the pruned model. Rows: what the "
        "two SAEs share. Ceiling: two SAEs of the same dense model, so paired; floor: a random dictionary."
    )
    rows, title = rows_by_pairing(f"survival at tau {MAIN_TAU}", *PAIRINGS), "RQ2: which features survive?"
    return Chart(
        "survival", title, says, ("survival", "ratios"), SPARSITY, rows, points, looks_of(series_of(table)), ends
    )


def perplexity(results: Path) -> Chart:
    """What pruning costs the model itself."""
    table = read_csv(results / "cells.csv", ["model", "condition", "series", "achieved_sparsity", "perplexity_ratio"])
    table = table[table["series"] != DENSE]
    points = points_of(
        table, method=table["series"], line=table["series"], x=100 * table["achieved_sparsity"],
        y=table["perplexity_ratio"], n=each("{condition}: perplexity {perplexity:.2f} on {tokens} tokens", table),
    )  # fmt: skip
    says = "Perplexity of the pruned model over that of the dense one."
    rows = {"": "perplexity / dense [log scale]"}
    title = "What pruning costs the model"
    return Chart("perplexity", title, says, ("cells",), SPARSITY, rows, points, looks_of(series_of(table)),
                 levels(1, "dense", ""), log="y")  # fmt: skip


def transfer(results: Path) -> Chart:
    """RQ3."""
    rows = {
        "fvu_ratio": "FVU / FVU on the dense model",
        "ce_loss_score": "CE-loss score",
        "kept": f"share of features with correlation > {KEPT} ({FIXED})",
    }
    ends = [f"{row}{end}" for row in rows for end in ("", "_low", "_high")]
    table = read_csv(results / "transfer.csv", ["model", "condition", "series", "achieved_sparsity", "sae", *ends])
    table = table[table["series"] != DENSE]
    line = [f"{series}, {sae} SAE" for series, sae in table[["series", "sae"]].itertuples(index=False)]
    points = [
        points_of(
            table, method=table["series"], row=row, line=line, x=100 * table["achieved_sparsity"], y=table[row],
            low=table[f"{row}_low"], high=table[f"{row}_high"],
            n=each("{condition}: " + ("{n_features:.0f} features" if row == "kept" else "{n_saes} SAEs"), table),
        ).dropna(subset="y")
        for row in rows
    ]  # fmt: skip
    looks = {
        f"{series}, {sae} SAE": (number, SOLID if sae == TRANSFERRED else DASHED)
        for number, series in enumerate(series_of(table))
        for sae in (TRANSFERRED, RETRAINED)
    }
    says = (
        "The dense model's own SAE on the pruned model, unchanged, beside one retrained on it. Viable: at most "
        f"{VIABLE} times its dense FVU, fixed in advance. The last row retrains nothing."
    )
    title = "RQ3: does the dense model's SAE still work?"
    return Chart("transfer", title, says, ("transfer",), SPARSITY, rows, pd.concat(points), looks,
                 levels(VIABLE, "viable below", "fvu_ratio"))  # fmt: skip


def fragility(results: Path) -> Chart:
    """RQ4."""
    says = (
        "Survival by fifth of dense firing rate: a line a pruned model, the sparsest drawn strong; grey, two dense "
        "SAEs. What shares its start may “survive” because neither copy moved; the last row retrains nothing."
    )
    rows = rows_by_pairing(f"survival at tau {MAIN_TAU}", *PAIRINGS) | {FIXED: f"correlation > {KEPT} ({FIXED})"}
    title = "RQ4: do rare features survive better?"
    tables, x = ("fragility_tests", "fragility"), "fifth of dense firing rate (1 = rarest)"
    return _quintiles(results, "fragility", title, says, tables, x, rows)


def displacement(results: Path) -> Chart:
    """The control behind RQ4."""
    says = "Survival by fifth of how far training moved a feature from where it started (1 = least)."
    rows = rows_by_pairing(f"survival at tau {MAIN_TAU}", *PAIRINGS)
    title = "Control: do features survive that never moved?"
    tables, x = ("displacement_tests", "displacement"), "fifth of displacement (1 = moved least)"
    return _quintiles(results, "displacement", title, says, tables, x, rows)


def _quintiles(
    results: Path, name: str, title: str, says: str, tables: tuple[str, ...], x: str, rows: dict[str, str]
) -> Chart:
    keys = ["model", "condition", "series", "sparsity", "pairing", "quintile"]
    table = read_csv(results / f"{name}.csv", [*keys, "survival", "low", "high", "n_features", "n_saes"])
    dense = table["series"] == DENSE
    points = points_of(
        table, method=table["series"].mask(dense, ""), row=table["pairing"],
        line=table["condition"].mask(dense, CEILING), x=table["quintile"], y=table["survival"],
        n=each("{condition}: a fifth of " + BEHIND, table),
    )  # fmt: skip
    series = series_of(table)
    most = table["sparsity"].max()
    looks = {
        str(condition): (series.index(str(of)) % GREY, SOLID if level == most else THIN)
        for condition, of, level in table.loc[~dense, ["condition", "series", "sparsity"]].itertuples(index=False)
    }
    present = {row: label for row, label in rows.items() if row in set(table["pairing"])}
    return Chart(name, title, says, tables, x, present, points[table["pairing"].isin(present)],
                 {CEILING: (GREY, SOLID), **looks}, [])  # fmt: skip


def causal(results: Path) -> Chart:
    """RQ5."""
    keys = ["model", "condition", "series", "achieved_sparsity", "pairing", "ablation", "outcome"]
    table = read_csv(results / "causal.csv", [*keys, "delta", "low", "high", "n_survivors", "n_casualties", "p_holm"])
    table = table[table["ablation"] == "zero"]
    names = {"ce": "cross-entropy", "kl": "KL"}
    line = [f"{series}, {names[outcome]}" for series, outcome in table[["series", "outcome"]].itertuples(index=False)]
    points = points_of(
        table, method=table["series"], row=table["pairing"], line=line, x=100 * table["achieved_sparsity"],
        y=table["delta"],
        n=each("{condition}: {n_survivors} survivors, {n_casualties} casualties; p {p_holm:.2g} (Holm)", table),
    )  # fmt: skip
    looks = {
        f"{series}, {name}": (number, SOLID if outcome == "ce" else DASHED)
        for number, series in enumerate(series_of(table))
        for outcome, name in names.items()
    }
    says = "Effect of ablating a feature in the dense model: above zero, those that survive pruning matter more."
    rows = rows_by_pairing("Cliff's delta", SAME_SEEDS, OTHER_INIT, FIXED)
    title = "RQ5: do features that survive matter more?"
    references = levels(0, "no difference", *rows)
    return Chart("causal", title, says, ("causal",), SPARSITY, rows, points, looks, references)


FIRST = (stability, survival, perplexity, transfer, fragility, displacement, causal)
