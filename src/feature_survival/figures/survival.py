"""RQ2: survival against achieved sparsity, a column a model, a row a pairing of seeds, a line a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import (
    DENSE,
    FLOOR,
    SPARSITY,
    STEP,
    by_pairing,
    model_grid,
    with_interval,
    write_counts,
)
from feature_survival.metrics.survival import PAIRINGS, RANDOM, SAME_SEEDS
from feature_survival.thresholds import MAIN_TAU

COLUMNS = ["model", "series", "achieved_sparsity", "pairing", "tau", "survival", "low", "high", "n_features", "n_saes"]


def figure(results: Path) -> Figure:
    """The figure, from `survival.csv`."""
    table = read_csv(results / "survival.csv", COLUMNS)
    table["achieved_sparsity"] *= 100
    return model_grid(table, by_pairing("survival", *PAIRINGS), _panel, xlabel=SPARSITY)


def _panel(axis: Axes, table: pd.DataFrame, pairing: str, looks: dict[str, Any]) -> None:
    """Series with 95% intervals at the main tau, thin lines at the others, ceiling and floor."""
    cells = table[table["pairing"] == pairing]
    for number, (series, look) in enumerate(looks.items()):
        of_series = cells[cells["series"] == series].sort_values("achieved_sparsity")
        for tau, line in of_series.groupby("tau"):
            x = line["achieved_sparsity"] + STEP * number
            if tau == MAIN_TAU:
                label = f"{series}, tau = {MAIN_TAU}, 95% interval"
                with_interval(axis, x, line, "survival", ["low", "high"], **look, label=label)
            else:
                others = " and ".join(f"{tau:g}" for tau in sorted(set(of_series["tau"]) - {MAIN_TAU}))
                label = f"thin lines: tau = {others} (higher tau, lower line)"
                axis.plot(x, line["survival"], color=look["color"], linestyle=look["linestyle"], lw=0.5, label=label)
    at_main = table[(table["tau"] == MAIN_TAU) & (table["series"] == DENSE)]
    if pairing == SAME_SEEDS:
        axis.axhline(1.0, **FLOOR, linestyle=(0, (6, 3)), label="ceiling by construction: the same dense SAE twice")
    for _, row in at_main[at_main["pairing"] == pairing].iterrows():
        axis.axhline(row["survival"], **FLOOR, linestyle="-", label="ceiling: two dense SAEs, paired as the row says")
        axis.axhspan(row["low"], row["high"], color=FLOOR["color"], alpha=0.15, linewidth=0)
    for _, row in at_main[at_main["pairing"] == RANDOM].iterrows():
        axis.axhline(row["survival"], **FLOOR, linestyle=":", label="floor: a random dictionary")
    pruned = cells[cells["series"] != DENSE]
    if len(pruned):
        write_counts(axis, pruned)
    axis.set_xlim(0, table["achieved_sparsity"].max() + 4)
