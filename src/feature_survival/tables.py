"""Printed tables, in Markdown and LaTeX, and numbers for prose as LaTeX macros: from `results/` alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from feature_survival.artifacts import atomic_file, read_csv
from feature_survival.metrics import RETRAINED, TRANSFERRED
from feature_survival.metrics.survival import FIXED, OTHER_INIT, OTHER_ORDER, PAIRINGS, RANDOM, SAME_SEEDS
from feature_survival.thresholds import KEPT, MAIN_TAU, VIABLE

KEY = ["model", "condition"]
SHORT = {
    SAME_SEEDS: "same seeds",
    OTHER_ORDER: "other order",
    OTHER_INIT: "other init",
    RANDOM: "random",
    FIXED: "fixed dictionary",
}


def _number(values: pd.Series, form: str) -> pd.Series:
    """Every value as text; `-` where there is none."""
    return values.map(form.format).where(values.notna(), "-")


def _range(rows: pd.DataFrame, value: str, low: str = "low", high: str = "high", digits: int = 3) -> pd.Series:
    """`value [low, high]` of every row; `-` where there is none."""
    columns = (rows[column].map(f"{{:.{digits}f}}".format) for column in (value, low, high))
    text = pd.Series([f"{v} [{a}, {b}]" for v, a, b in zip(*columns, strict=True)], index=rows.index, dtype=object)
    return text.where(rows[value].notna(), "-")


def _spread(rows: pd.DataFrame, by: list[str], across: str, text: pd.Series) -> pd.DataFrame:
    """A column for each value of `across`, in order of appearance; `-` where there is none."""
    wide = rows[[*by, across]].assign(text=text).pivot(index=by, columns=across, values="text")
    named = [name for name in SHORT if name in wide]
    order = [*named, *(name for name in rows[across].unique() if name not in named)]
    ordered = wide.reindex(rows[by].drop_duplicates().set_index(by).index)[order]
    return ordered.rename(columns=SHORT).fillna("-").reset_index()


def models(results: Path) -> pd.DataFrame:
    """What was pruned, where it was read, and how good the models and their SAEs are."""
    names = ["model", "architecture", "parameters", "vocabulary", "training_tokens", "perplexity"]
    names += ["site", "site_width", "sae_width", "sae_tokens", "n_saes", "l0", "fvu", "ce_loss_score"]
    table = read_csv(results / "models.csv", names)
    return pd.DataFrame(
        {
            "model": table["model"],
            "class": table["architecture"],
            "parameters": (table["parameters"] / 1e6).map("{:.2f}M".format),
            "vocabulary": table["vocabulary"].map(str),
            "trained on": _number(table["training_tokens"] / 1e6, "{:.1f}M tokens"),
            "perplexity": table["perplexity"].map("{:.2f}".format),
            "site": table["site"] + " (" + table["site_width"].map(str) + ")",
            "SAE width": table["sae_width"].map(str),
            "SAE tokens": (table["sae_tokens"] / 1e6).map("{:.2f}M".format),
            "SAEs": table["n_saes"].map(str),
            "L0": table["l0"].map("{:.1f}".format),
            "FVU": table["fvu"].map("{:.3f}".format),
            "CE-loss score": table["ce_loss_score"].map("{:.3f}".format),
        }
    )


def cells(results: Path) -> pd.DataFrame:
    """Every cell: what was removed, and what it cost the model."""
    names = [*KEY, "sparsity", "achieved_sparsity", "cross_entropy", "perplexity", "perplexity_ratio", "fvu"]
    table = read_csv(results / "cells.csv", [*names, "share_dead"])
    return pd.DataFrame(
        {
            "model": table["model"],
            "condition": table["condition"],
            "sparsity asked": (100 * table["sparsity"]).map("{:.0f}%".format),
            "achieved": (100 * table["achieved_sparsity"]).map("{:.1f}%".format),
            "CE [nats]": table["cross_entropy"].map("{:.3f}".format),
            "perplexity": table["perplexity"].map("{:.2f}".format),
            "x dense": table["perplexity_ratio"].map("{:.2f}".format),
            "FVU of own SAEs": table["fvu"].map("{:.3f}".format),
            "dead": (100 * table["share_dead"]).map("{:.1f}%".format),
        }
    )


def stability(results: Path) -> pd.DataFrame:
    """RQ1: agreement of SAEs of the dense model."""
    names = ["model", "pairing", "match", "tau", "value", "low", "high", "n_features", "n_pairs"]
    table = read_csv(results / "stability.csv", names)
    table["kind"] = table["match"] + table["tau"].map(lambda tau: "" if pd.isna(tau) else f" @{tau:g}")
    wide = _spread(table, ["model", "kind"], "pairing", _range(table, "value"))
    return wide.rename(columns={"kind": "match"})


def transfer(results: Path) -> pd.DataFrame:
    """RQ2 and RQ3: survival, and the dense SAE against a retrained one, of every compressed cell."""
    survival = read_csv(results / "survival.csv", [*KEY, "pairing", "tau", "survival", "low", "high"])
    survival = survival[(survival["tau"] == MAIN_TAU) & survival["pairing"].isin(PAIRINGS)]
    values = ["fvu", "fvu_ratio", "ce_loss_score", "kl"]
    columns = [*KEY, "sae", *values, "viable", "jaccard", "kept", "kept_low", "kept_high"]
    table = read_csv(results / "transfer.csv", columns)
    old, new = (table[table["sae"] == kind].set_index(KEY) for kind in (TRANSFERRED, RETRAINED))
    found = _spread(survival, KEY, "pairing", _range(survival, "survival")).set_index(KEY)
    out = found.reindex(old.index).fillna("-")
    for heading, column in (("FVU", "fvu"), ("CE score", "ce_loss_score"), ("KL", "kl")):
        out[heading] = [f"{a:.3f} / {b:.3f}" for a, b in zip(old[column], new[column], strict=True)]
    out["FVU x dense"] = old["fvu_ratio"].map("{:.2f}".format)
    out["viable"] = old["viable"].map({True: "yes", False: "no"})
    out["Jaccard"] = old["jaccard"].map("{:.2f}".format)
    out["kept"] = _range(old, "kept", "kept_low", "kept_high")
    return out.reset_index()


def fragility(results: Path) -> pd.DataFrame:
    """RQ4: all four statistics of every compressed cell and pairing."""
    names = [*KEY, "pairing", "rho_bins", "p_bins", "n_bins", "rho_features", "n_features"]
    table = read_csv(results / "fragility_tests.csv", [*names, "gap", "gap_low", "gap_high", "auc"])
    predictors = read_csv(results / "predictors.csv", [*KEY, "pairing", "predictor", "coefficient", "low", "high"])
    by = [*KEY, "pairing"]
    bins = zip(table["rho_bins"], table["p_bins"], table["n_bins"], strict=True)
    features = zip(_number(table["rho_features"], "{:+.2f}"), table["n_features"], strict=True)
    out = table[by].copy()
    out["rho of bins (p)"] = ["-" if rho != rho else f"{rho:+.1f} ({p:.3f}, n = {n})" for rho, p, n in bins]
    out["rho of features (n)"] = [f"{rho} ({n})" for rho, n in features]
    out["S(rarest) - S(most frequent)"] = _range(table, "gap", "gap_low", "gap_high")
    out["AUC"] = _number(table["auc"], "{:.2f}")
    for heading, name in (("log odds / sd of log rate", "log_firing_rate"), ("of displacement", "displacement")):
        rows = predictors[predictors["predictor"] == name]
        out = out.merge(rows[by].assign(**{heading: _range(rows, "coefficient", digits=2)}), on=by, how="left")
    return out.assign(pairing=out["pairing"].map(SHORT)).fillna("-")


def causal(results: Path) -> pd.DataFrame:
    """RQ5: effects of survivors against casualties; one row a cell and pairing, by zero ablation."""
    groups = [f"{group}_median" for group in ("survivors", "casualties")]
    names = [*KEY, "pairing", "ablation", "outcome", "n_survivors", "rho", "delta", "low", "high", "p_holm", *groups]
    table = read_csv(results / "causal.csv", names)
    by = [*KEY, "pairing"]
    zero = table[table["ablation"] == "zero"]
    ce, kl = (zero[zero["outcome"] == outcome].set_index(by) for outcome in ("ce", "kl"))
    out = pd.DataFrame(
        {
            "n of each": ce["n_survivors"].map(str),
            "median, survivors [nats]": _number(ce["survivors_median"], "{:.4f}"),
            "casualties": _number(ce["casualties_median"], "{:.4f}"),
            "rho": _number(ce["rho"], "{:+.2f}"),
            "Cliff's delta, CE": _range(ce, "delta", digits=2),
            "p (Holm)": _number(ce["p_holm"], "{:.2g}"),
            "Cliff's delta, KL": _range(kl, "delta", digits=2),
        }
    ).reset_index()
    return out.assign(pairing=out["pairing"].map(SHORT))


def variants(results: Path) -> pd.DataFrame:
    """Study B: every SAE on every compressed model, site by site."""
    names = ["model", "site", "condition", "sae", "variant", "score", "l0", "fvu", "fvu_ratio", "ce_without_sae"]
    names += ["ce_loss_score", "ce_loss_score_short", "kl", "probing_5", "absorption", "cause", "isolation"]
    table = read_csv(results / "variants_by_site.csv", names)
    table = table[table["condition"] != "dense"]
    return pd.DataFrame(
        {
            **{name: table[name] for name in ("model", "site", "condition", "sae")},
            "variant": table["variant"].str.cat(" " + table["score"].fillna("")).str.strip(),
            "L0": _number(table["l0"], "{:.1f}"),
            "CE without SAE [nats]": _number(table["ce_without_sae"], "{:.4f}"),
            "FVU": _number(table["fvu"], "{:.3f}"),
            "/ retrained": _number(table["fvu_ratio"], "{:.2f}"),
            "CE-loss score": _number(table["ce_loss_score"], "{:.3f}"),
            "below retrained": _number(table["ce_loss_score_short"], "{:+.3f}"),
            "KL [nats]": _number(table["kl"], "{:.4f}"),
            "probing, k = 5": _number(table["probing_5"], "{:.3f}"),
            "absorption": _number(table["absorption"], "{:.3f}"),
            "cause": _number(table["cause"], "{:.3f}"),
            "isolation": _number(table["isolation"], "{:.3f}"),
        }
    )


def compressors(results: Path) -> pd.DataFrame:
    """Every compressor: what it costs, and what becomes of the dense model's features and of its SAE."""
    by = ["model", "site", "condition"]
    names = ["bits_per_weight", "achieved_sparsity", "perplexity", "perplexity_ratio", "fvu_ratio"]
    names += ["fvu_ratio_retrained", "ce_loss_score_short", "pairing", "survival", "low", "high"]
    table = read_csv(results / "compressors.csv", [*by, *names])
    first = table.drop_duplicates(by).reset_index(drop=True)
    costs = pd.DataFrame(
        {
            **{name: first[name] for name in by},
            "bits a weight": _number(first["bits_per_weight"], "{:.2f}"),
            "zeros": _number(100 * first["achieved_sparsity"], "{:.1f}%"),
            "perplexity": _number(first["perplexity"], "{:.2f}"),
            "x dense": _number(first["perplexity_ratio"], "{:.3f}"),
            "FVU / dense": _number(first["fvu_ratio"], "{:.2f}"),
            "retrained": _number(first["fvu_ratio_retrained"], "{:.2f}"),
            "CE-loss score below retrained": _number(first["ce_loss_score_short"], "{:+.3f}"),
        }
    )
    return costs.merge(_spread(table, by, "pairing", _range(table, "survival", digits=2)), on=by, how="left")


def matched(results: Path) -> pd.DataFrame:
    """Every compressor beside Wanda at the same perplexity and at the same bits."""
    by = ["model", "site", "condition", "matched_by"]
    table = read_csv(results / "matched.csv", [*by, "quantity", "value", "wanda", "difference"])
    text = _number(table["value"], "{:.2f}") + " / " + _number(table["wanda"], "{:.2f}")
    return _spread(table, by, "quantity", text)


class Table(NamedTuple):
    """How a table is made, and the sentence that says how to read it."""

    make: Callable[[Path], pd.DataFrame]
    caption: str


TABLES = {
    "models": Table(
        models, "Models, the sites they are read at (width in brackets), and the mean quality of their dense SAEs."
    ),
    "cells": Table(
        cells,
        "Every cell of the grid: sparsity asked and achieved, and what it cost. FVU and dead: the cell's own SAEs.",
    ),
    "stability": Table(
        stability,
        "RQ1. Share of a dense SAE's alive features matched in another SAE of the same model, by mutual nearest "
        "neighbours, by the optimal one-to-one assignment, and by that assignment in decoder and encoder; mean cosine "
        "of the assignment (PW-MCC). 95% intervals over SAEs and features.",
    ),
    "transfer": Table(
        transfer,
        f"RQ2 and RQ3. Survival at tau = {MAIN_TAU} with 95% intervals for three pairings of seeds (the dense row: two "
        "dense SAEs); FVU, CE-loss score and KL [nats] of the dense model's SAE / of SAEs retrained on the pruned "
        f"model; viable: FVU at most {VIABLE} x that on the dense model; kept: share of features whose activations "
        f"correlate > {KEPT} with those in the dense model.",
    ),
    "fragility": Table(
        fragility,
        "RQ4. Spearman over the means of five bins of dense firing rate, with exact two-sided p; Spearman over "
        "features; survival of the rarest minus the most frequent quintile; AUC, on SAEs left out, of a logistic "
        "regression on log firing rate, mean and maximum activation, encoder-decoder cosine and displacement from "
        "initialisation, and two of its coefficients. 95% intervals.",
    ),
    "causal": Table(
        causal,
        "RQ5. Effect of ablating a feature in the dense model (to zero, the SAE's error kept) of as many survivors as "
        "casualties in each quintile of firing rate: medians, Spearman with survival, Cliff's delta with 95% interval, "
        "Mann-Whitney p with Holm's correction over the cells of a pairing.",
    ),
    "variants": Table(
        variants,
        "Study B. SAEs on compressed models: the dense model's (pretrained), one retrained on the compressed model "
        "with the same budget and k, and the pretrained one with that share of its weights pruned by that score. CE "
        "without SAE is the compressed model's own, equal for all. Absorption, cause and isolation (RAVEL): on the "
        "main condition. CE-loss score below that of the retrained: at most .02 counts as matching it.",
    ),
    "compressors": Table(
        compressors,
        "Every compressor. FVU of the dense model's SAE and of one retrained on the compressed model, over that of the "
        f"dense model's on the dense model (viable: at most {VIABLE}); survival at tau = {MAIN_TAU} for three pairings "
        f"of seeds, and share of features kept in a fixed dictionary (correlation > {KEPT}), with exact 95% intervals "
        "over features.",
    ),
    "matched": Table(
        matched,
        "Every compressor / Wanda pruned so far that its perplexity, or the bits it takes, are the same (log-linear "
        "between its levels; - beyond them).",
    ),
}


def write(results: Path, folder: Path) -> None:
    """Write every table as `<name>.md` and `<name>.tex`, and `numbers.tex`."""
    for name, (make, caption) in TABLES.items():
        write_table(name, make(results), caption, folder)
    with atomic_file(folder / "numbers.tex") as path:
        path.write_text(macros(results), encoding="utf-8")


def write_table(name: str, table: pd.DataFrame, caption: str, folder: Path) -> None:
    """Write one table, all of text, as Markdown and LaTeX."""
    with atomic_file(folder / f"{name}.md") as path:
        markdown = table.to_markdown(index=False, disable_numparse=True)
        path.write_text(f"{caption}\n\n{markdown}\n", encoding="utf-8")
    with atomic_file(folder / f"{name}.tex") as path:
        latex = table.map(_latex).rename(columns=_latex)
        text = latex.to_latex(index=False, escape=False, caption=_latex(caption), label=f"tab:{name}")
        path.write_text(text, encoding="utf-8")


DIGITS = ["Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"]


def macros(results: Path) -> str:
    r"""Survival and perplexity of every cell for prose, e.g. `\SurvivalMiniLlamaThreeWandaFiveZeroSameSeeds`."""
    survival = read_csv(results / "survival.csv", [*KEY, "pairing", "tau", "survival"])
    found = {
        f"survival {row.model} {row.condition} {SHORT[str(row.pairing)]}": f"{row.survival:.2f}"
        for row in survival[survival["tau"] == MAIN_TAU].itertuples()
    }
    for row in read_csv(results / "cells.csv", [*KEY, "perplexity"]).itertuples():
        found[f"perplexity {row.model} {row.condition}"] = f"{row.perplexity:.1f}"
    lines = [f"\\newcommand{{\\{_macro_name(name)}}}{{{value}}}" for name, value in found.items()]
    return "% Written by `feature-survival tables` from results/.\n" + "\n".join(lines) + "\n"


def _macro_name(words: str) -> str:
    """Letters only, as LaTeX wants: digits are spelt out."""
    spelt = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", words)
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z]+", spelt))


def _latex(text: str) -> str:
    return re.sub(r"([%_&#])", r"\\\1", text).replace(">", "$>$").replace("<", "$<$")
