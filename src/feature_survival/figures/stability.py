"""RQ1: how alike SAEs of one dense model are that differ in their seeds, beside random dictionaries (the floor)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import LOOKS, PAPER, model_grid, with_interval
from feature_survival.metrics.survival import OTHER_INIT, OTHER_ORDER, RANDOM
from feature_survival.thresholds import MAIN_TAU

COLUMNS = ["model", "pairing", "match", "tau", "value", "low", "high", "n_features", "n_saes", "n_pairs"]
NAMES = {OTHER_ORDER: OTHER_ORDER, OTHER_INIT: OTHER_INIT, RANDOM: "floor: a random dictionary"}


def figure(results: Path) -> Figure:
    """The figure, from `stability.csv`."""
    table = read_csv(results / "stability.csv", COLUMNS)
    label = f"share of alive features matched\nat tau = {MAIN_TAU} (last: mean cosine)"
    return model_grid(table, {"match": label}, _panel, xlabel="how features are matched", row_height=3.4)


def _panel(axis: Axes, table: pd.DataFrame, _: str, __: dict[str, Any]) -> None:
    """A marker a pairing and kind of match, with 95% interval; small ticks at the other taus; the mean cosine last."""
    kinds = [*table.loc[table["tau"].notna(), "match"].unique(), *table.loc[table["tau"].isna(), "match"].unique()]
    for number, (pairing, name) in enumerate(NAMES.items()):
        rows = table[table["pairing"] == pairing]
        if rows.empty:
            continue
        rows = rows.assign(x=[kinds.index(kind) + 0.2 * (number - 1) for kind in rows["match"]])
        look = {**LOOKS[number], "linestyle": "none"}
        main = rows[(rows["tau"] == MAIN_TAU) | rows["tau"].isna()]
        with_interval(axis, main["x"], main, "value", ["low", "high"], **look, label=f"{name}, 95% interval")
        others = rows[rows["tau"].notna() & (rows["tau"] != MAIN_TAU)]
        taus = " and ".join(f"{tau:g}" for tau in sorted(others["tau"].unique()))
        label = f"dashes: tau = {taus} (higher tau, lower dash)" if taus else None
        axis.plot(others["x"], others["value"], color=look["color"], marker="_", linestyle="none", ms=5, label=label)
    axis.axvline(len(kinds) - 1.5, color="0.7", linewidth=0.6)
    axis.set_xticks(range(len(kinds)), [kind.replace(" ", "\n") for kind in kinds], fontsize=6.5)
    axis.set_xlim(-0.5, len(kinds) - 0.5)
    axis.set_ylim(-0.03, 1.0)
    dense = table[table["pairing"] != RANDOM]
    note = "\n".join(
        f"{NAMES[str(pairing)]}: n = {rows['n_features'].iloc[0]} features, {rows['n_pairs'].iloc[0]} pairs"
        for pairing, rows in dense.groupby("pairing", sort=False)
    )
    axis.text(0.02, 0.98, note, transform=axis.transAxes, fontsize=5.5, color="0.3", va="top", bbox=PAPER)
