"""RQ4: survival by quintile of dense firing rate, a column a model, a row a pairing of seeds.

Same-init pairs stand above different-init ones: a rare feature that "survives" only where both SAEs started from the
same weights did not survive, it never moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.config import MAIN_TAU
from feature_survival.figures.style import DENSE, FLOOR, pairing_grid, write_counts

COLUMNS = ["model", "series", "sparsity", "pairing", "quintile", "survival", "low", "high", "n_features", "n_saes"]
OFFSET = 0.06  # quintiles between series, so that intervals do not hide each other


def figure(results: Path) -> Figure:
    """The figure, from `fragility.csv`."""
    table = read_csv(results / "fragility.csv", COLUMNS)
    return pairing_grid(
        table, _panel, ylabel=f"survival at tau = {MAIN_TAU}", xlabel="quintile of dense firing rate\n(1 = rarest)"
    )


def _panel(axis: Axes, table: pd.DataFrame, pairing: str, looks: dict[str, Any]) -> None:
    """Lowest and highest sparsity of each series with 95% intervals, those between as thin lines, dense in grey."""
    cells = table[table["pairing"] == pairing]
    dense = cells[cells["series"] == DENSE]
    if len(dense):
        axis.plot(
            dense["quintile"], dense["survival"], **FLOOR, label="ceiling: two dense SAEs, paired as the row says"
        )
        axis.fill_between(dense["quintile"], dense["low"], dense["high"], color=FLOOR["color"], alpha=0.15, linewidth=0)
    for number, (series, look) in enumerate(looks.items()):
        of_series = cells[cells["series"] == series]
        ends = of_series["sparsity"].min(), of_series["sparsity"].max()
        for level, line in of_series.groupby("sparsity"):
            x, y = line["quintile"] + OFFSET * number, line["survival"]
            if level in ends:
                fill = "white" if level == ends[0] < ends[1] else look["color"]
                bars = [y - line["low"], line["high"] - y]
                label = f"{series} {100 * line['sparsity'].iloc[0]:.0f}%, 95% interval"
                axis.errorbar(x, y, yerr=bars, capsize=2, label=label, markerfacecolor=fill, **look)
            else:
                label = "thin lines: the sparsities between"
                axis.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=0.5, label=label)
    pruned = cells[cells["series"] != DENSE]
    if len(pruned):
        write_counts(axis, pruned)
    axis.set_xticks(range(1, 6))
