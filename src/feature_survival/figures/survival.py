"""RQ2: survival against achieved sparsity, a column a model, a row a pairing of seeds, a line a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.figures.style import FULL_WIDTH, METHODS, read
from feature_survival.metrics.survival import OTHER_ORDER, PAIRINGS, RANDOM, SAME_SEEDS

TAU = 0.7
COLUMNS = ["model", "method", "achieved_sparsity", "pairing", "tau", "survival", "low", "high", "n_features", "n_pairs"]


def figure(results: Path) -> Figure:
    """The figure, from `survival.csv`."""
    table = read(results, "survival", COLUMNS)
    models = list(table["model"].unique())
    drawn = [pairing for pairing in PAIRINGS if (table["pairing"] == pairing).any()]
    size = (FULL_WIDTH if len(models) > 1 else FULL_WIDTH / 2, 1.75 * len(drawn) + 0.6)
    canvas, axes = plt.subplots(
        len(drawn), len(models), figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for row, pairing in enumerate(drawn):
        for column, model in enumerate(models):
            _panel(axes[row, column], table[table["model"] == model], pairing)
        axes[row, 0].set_ylabel(f"survival\n({pairing})")
    for column, model in enumerate(models):
        axes[0, column].set_title(model)
        axes[-1, column].set_xlabel("achieved sparsity [%]")
    entries: dict[str, Any] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    canvas.legend(list(entries.values()), list(entries), ncols=3, frameon=False, loc="outside lower center")
    return canvas


def _panel(axis: Axes, table: pd.DataFrame, pairing: str) -> None:
    """One model and pairing: methods with 95% intervals at tau = .7, thin lines at the other taus, floors."""
    cells = table[table["pairing"] == pairing]
    pruned = cells[cells["method"] != "dense"].sort_values("achieved_sparsity")
    for method, of_method in pruned.groupby("method"):
        look = METHODS[str(method)]
        for tau, line in of_method.groupby("tau"):
            x = 100 * line["achieved_sparsity"]
            if tau == TAU:
                axis.plot(x, line["survival"], label=f"{method}, tau = {TAU} (95% interval)", **look)
                axis.fill_between(x, line["low"], line["high"], color=look["color"], alpha=0.18, linewidth=0)
            else:
                axis.plot(x, line["survival"], color=look["color"], linestyle=look["linestyle"], linewidth=0.5)
    at_tau = table[table["tau"] == TAU]
    if pairing == SAME_SEEDS:
        axis.axhline(1.0, color="0.35", linewidth=0.9, label="dense against dense, this pairing")
    _floor(
        axis,
        at_tau[(at_tau["method"] == "dense") & (at_tau["pairing"] == pairing)],
        "dense against dense, this pairing",
        "-",
    )
    _floor(axis, at_tau[at_tau["pairing"] == RANDOM], "random dictionary", ":")
    if len(pruned):
        at_tau = pruned[pruned["tau"] == TAU]
        low, high = at_tau["n_features"].min(), at_tau["n_features"].max()
        count = f"{low}" if low == high else f"{low}-{high}"
        axis.text(
            0.03,
            0.06,
            f"n = {count} features\nof {at_tau['n_pairs'].max()} SAE pairs",
            transform=axis.transAxes,
            fontsize=6.5,
            color="0.3",
        )
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0, top=None if pairing != OTHER_ORDER and pairing != SAME_SEEDS else 1.04)


def _floor(axis: Axes, rows: pd.DataFrame, label: str, linestyle: str) -> None:
    """A horizontal line with its interval, where the results have one."""
    for _, row in rows.iterrows():
        axis.axhline(row["survival"], color="0.35", linewidth=0.9, linestyle=linestyle, label=label)
        axis.axhspan(row["low"], row["high"], color="0.35", alpha=0.12, linewidth=0)
