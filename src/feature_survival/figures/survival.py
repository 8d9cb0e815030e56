"""RQ2: survival against achieved sparsity, a column a model, a row a pairing of seeds, a line a method."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.config import MAIN_TAU
from feature_survival.figures.style import COLUMN_WIDTH, FLOOR, FULL_WIDTH, METHODS, legend_below
from feature_survival.metrics.survival import PAIRINGS, RANDOM, SAME_SEEDS

COLUMNS = ["model", "method", "achieved_sparsity", "pairing", "tau", "survival", "low", "high", "n_features", "n_pairs"]


def figure(results: Path) -> Figure:
    """The figure, from `survival.csv`."""
    table = read_csv(results / "survival.csv", COLUMNS)
    table["achieved_sparsity"] *= 100
    models = list(table["model"].unique())
    canvas, axes = plt.subplots(
        len(PAIRINGS),
        len(models),
        figsize=(FULL_WIDTH if len(models) > 1 else COLUMN_WIDTH, 6.2),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for row, pairing in enumerate(PAIRINGS):
        for column, model in enumerate(models):
            _panel(axes[row, column], table[table["model"] == model], pairing)
        axes[row, 0].set_ylabel(f"survival\n({pairing})")
    for column, model in enumerate(models):
        axes[0, column].set_title(model)
        axes[-1, column].set_xlabel("achieved sparsity [%]")
    legend_below(canvas, columns=2 if len(models) > 1 else 1)
    return canvas


def _panel(axis: Axes, table: pd.DataFrame, pairing: str) -> None:
    """One model and pairing: methods with 95% intervals at the main tau, thin lines at the others, floors."""
    cells = table[table["pairing"] == pairing]
    pruned = cells[cells["method"] != "dense"].sort_values("achieved_sparsity")
    for number, (method, of_method) in enumerate(pruned.groupby("method")):
        look = METHODS[str(method)]
        others = sorted(set(of_method["tau"]) - {MAIN_TAU})
        for tau, line in of_method.groupby("tau"):
            x, y = line["achieved_sparsity"], line["survival"]
            if tau == MAIN_TAU:
                bars = [y - line["low"], line["high"] - y]
                shifted = x + 0.6 * number  # so that intervals at equal sparsity do not hide each other
                axis.errorbar(
                    shifted, y, yerr=bars, capsize=2, label=f"{method}, tau = {MAIN_TAU} with 95% interval", **look
                )
            else:
                label = f"thin lines: tau = {others[0]} (upper) and {others[-1]} (lower)"
                axis.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=0.5, label=label)
    main = table[table["tau"] == MAIN_TAU]
    floors = main[main["method"] == "dense"]
    if pairing == SAME_SEEDS:  # a dense SAE beside itself
        axis.axhline(1.0, **FLOOR, linestyle="-")
    for _, row in floors[floors["pairing"] == pairing].iterrows():
        axis.axhline(row["survival"], **FLOOR, linestyle="-", label="ceiling: two dense SAEs, paired as the row says")
        axis.axhspan(row["low"], row["high"], color=FLOOR["color"], alpha=0.15, linewidth=0)
    for _, row in floors[floors["pairing"] == RANDOM].iterrows():
        axis.axhline(row["survival"], **FLOOR, linestyle=":", label="floor: a random dictionary")
    if len(pruned):
        counts = pruned["n_features"]
        span = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()}-{counts.max()}"
        note = f"n = {span} features\nof {pruned['n_pairs'].max()} SAE pairs"
        axis.text(0.03, 0.07, note, transform=axis.transAxes, fontsize=6.5, color="0.3")
    axis.set_xlim(0, table["achieved_sparsity"].max() + 4)
    axis.set_ylim(bottom=-0.02 * axis.get_ylim()[1])  # a floor of zero stays visible
