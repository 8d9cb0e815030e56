"""RQ4: survival by quintile of dense firing rate, a column a model, a row a pairing of seeds.

Same-init pairs stand above different-init ones: a rare feature that "survives" only where both SAEs started from the
same weights did not survive, it never moved.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.config import MAIN_TAU
from feature_survival.figures.style import COLUMN_WIDTH, FLOOR, FULL_WIDTH, METHODS, legend_below
from feature_survival.metrics.survival import PAIRINGS

COLUMNS = ["model", "method", "sparsity", "pairing", "quintile", "survival", "low", "high", "n_features", "n_pairs"]


def figure(results: Path) -> Figure:
    """The figure, from `fragility.csv`."""
    table = read_csv(results / "fragility.csv", COLUMNS)
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
            cells = table[(table["model"] == model) & (table["pairing"] == pairing)]
            _panel(axes[row, column], cells)
        axes[row, 0].set_ylabel(f"survival at tau = {MAIN_TAU}\n({pairing})")
    for column, model in enumerate(models):
        axes[0, column].set_title(model)
        axes[-1, column].set_xlabel("quintile of dense firing rate\n(1 = rarest)")
    legend_below(canvas, columns=2 if len(models) > 1 else 1)
    return canvas


def _panel(axis: Axes, cells: pd.DataFrame) -> None:
    """Lowest and highest sparsity of each method with 95% intervals, those between as thin lines, dense in grey."""
    dense = cells[cells["method"] == "dense"]
    if len(dense):
        axis.plot(dense["quintile"], dense["survival"], **FLOOR, label="two dense SAEs, paired as the row says")
        axis.fill_between(dense["quintile"], dense["low"], dense["high"], color=FLOOR["color"], alpha=0.15, linewidth=0)
    pruned = cells[cells["method"] != "dense"]
    for number, (method, of_method) in enumerate(pruned.groupby("method")):
        look = METHODS[str(method)]
        ends = of_method["sparsity"].min(), of_method["sparsity"].max()
        for sparsity, line in of_method.groupby("sparsity"):
            x, y = line["quintile"] + 0.06 * number, line["survival"]
            if sparsity not in ends:
                axis.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=0.5)
                continue
            fill = "white" if sparsity == ends[0] < ends[1] else look["color"]
            bars = [y - line["low"], line["high"] - y]
            label = f"{method}, {100 * float(str(sparsity)):g}% with 95% interval"
            axis.errorbar(x, y, yerr=bars, capsize=2, label=label, markerfacecolor=fill, **look)
    if len(pruned):
        note = f"n = {pruned['n_features'].min()} features of {pruned['n_pairs'].max()} SAE pairs"
        axis.text(0.03, 0.03, note, transform=axis.transAxes, fontsize=6.5, color="0.3")
    axis.set_xticks(range(1, 6))
    axis.set_ylim(bottom=0)
