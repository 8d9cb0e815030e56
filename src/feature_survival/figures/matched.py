"""Study B: every compressor beside Wanda pruned to the same perplexity, or to the same bits a weight."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import FLOOR, at_first_site, by_family, grid, looks_of
from feature_survival.metrics.survival import FIXED, OTHER_INIT, SAME_SEEDS
from feature_survival.thresholds import KEPT, MAIN_TAU

ROWS = {
    SAME_SEEDS: f"survival at tau = {MAIN_TAU}\n({SAME_SEEDS};\n> 0: more survive)",
    OTHER_INIT: f"survival at tau = {MAIN_TAU}\n({OTHER_INIT};\n> 0: more survive)",
    FIXED: f"correlation > {KEPT}\n({FIXED};\n> 0: more are kept)",
    "FVU ratio": "FVU / on the dense model\n(dense model's SAE;\n> 0: more unexplained)",
}
COLUMNS = ["model", "site", "condition", "method", "group", "matched_by", "quantity", "difference"]
STRIP = 0.1  # of a panel's width, at its right end: what lies beyond Wanda's levels


def figure(results: Path) -> Figure:
    """The figure, from `matched.csv`, at the site that every condition was measured at."""
    table, site = at_first_site(read_csv(results / "matched.csv", COLUMNS))
    table = table.assign(panel="matched by " + table["matched_by"] + ", " + site)
    conditions = list(by_family(table))[::-1]
    panel = partial(_panel, looks=looks_of(list(table["model"].unique())), conditions=conditions)
    xlabel = "difference to Wanda, interpolated"
    rows = {name: label for name, label in ROWS.items() if name in set(table["quantity"])}
    height = max(1.7, 0.45 + 0.115 * len(conditions))
    return grid(table, "panel", rows, panel, xlabel, height, sharex="none", sharey=True, legend_columns=5)


def _panel(axis: Axes, table: pd.DataFrame, row: str, looks: dict[str, Any], conditions: list[str]) -> None:
    """A marker a model and compressor; those without a value in a strip at the side."""
    rows = table[table["quantity"] == row]
    reached = [0.0, *rows["difference"].dropna()]
    low, high = min(reached), max(reached)
    reach = (high - low) or 1.0
    left, right = low - 0.05 * reach, high + 0.05 * reach
    right += (right - left) * STRIP / (1 - STRIP)
    for number, (model, look) in enumerate(looks.items()):
        of_model = rows[rows["model"] == model]
        y = of_model["condition"].map(conditions.index) + 0.25 * ((len(looks) - 1) / 2 - number)
        marker = {"color": look["color"], "marker": look["marker"], "linestyle": "none", "markersize": 3.5}
        axis.plot(of_model["difference"], y, **marker, label=model)
        beyond = y[of_model["difference"].isna()]
        hollow = {**marker, "color": "0.5", "markerfacecolor": "white"}
        axis.plot([right - STRIP / 2 * (right - left)] * len(beyond), beyond, **hollow)
    axis.axvspan(
        right - STRIP * (right - left), right, color="0.9", linewidth=0, label="beyond Wanda's levels: no value"
    )
    axis.plot([0, 0], [-0.8, len(conditions) - 0.2], **FLOOR, zorder=1, label="as Wanda")
    axis.set_xlim(left, right)
    axis.set_ylim(-0.8, len(conditions) - 0.2)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_yticks(range(len(conditions)), conditions, fontsize=7)
