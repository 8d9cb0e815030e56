"""RQ5: causal effects, in the dense model, of features that survive pruning and of those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import FLOOR, PAPER, STEP, model_grid, with_interval
from feature_survival.metrics.survival import FIXED, OTHER_INIT, SAME_SEEDS

ROWS = {
    "effects": f"rise of CE when ablated [nats]\n({SAME_SEEDS})",
    SAME_SEEDS: f"Cliff's delta\n({SAME_SEEDS})",
    OTHER_INIT: f"Cliff's delta\n({OTHER_INIT})",
    FIXED: f"Cliff's delta\n({FIXED})",
}
COLUMNS = [
    "model",
    "series",
    "achieved_sparsity",
    "pairing",
    "ablation",
    "outcome",
    "n_survivors",
    "delta",
    "low",
    "high",
]
COLUMNS += [f"{group}_{value}" for group in ("survivors", "casualties") for value in ("q25", "median", "q75")]


def figure(results: Path) -> Figure:
    """The figure, from `causal.csv`: zero ablation, cross-entropy."""
    table = read_csv(results / "causal.csv", COLUMNS)
    table = table[(table["ablation"] == "zero") & (table["outcome"] == "ce")]
    table = table.assign(achieved_sparsity=100 * table["achieved_sparsity"])
    return model_grid(table, ROWS, _panel, xlabel="achieved sparsity [%]\n(series set apart to the right)")


def _panel(axis: Axes, table: pd.DataFrame, row: str, looks: dict[str, Any]) -> None:
    cells = table[table["pairing"] == (SAME_SEEDS if row == "effects" else row)]
    axis.axhline(0, **FLOOR)
    for number, (series, look) in enumerate(looks.items()):
        rows = cells[cells["series"] == series].sort_values("achieved_sparsity")
        if row == "effects":
            axis.set_ymargin(0.15)  # room for the note
            for place, (group, fill) in enumerate((("survivors", look["color"]), ("casualties", "white"))):
                x = rows["achieved_sparsity"] + 6 * (2 * number + place) / (2 * len(looks))
                label = f"{series}: {group}, median and quartiles"
                ends = [f"{group}_q25", f"{group}_q75"]
                look_of_group = {**look, "linestyle": "none", "markerfacecolor": fill, "label": label}
                with_interval(axis, x, rows, f"{group}_median", ends, **look_of_group)
        else:
            x = rows["achieved_sparsity"] + STEP * number
            label = f"{series}: delta > 0 = survivors matter more, 95% interval"
            with_interval(axis, x, rows, "delta", ["low", "high"], **look, label=label)
    if len(cells):
        note = f"n = {cells['n_survivors'].min()}-{cells['n_survivors'].max()} of each a cell"
        axis.text(0.03, 0.03, note, transform=axis.transAxes, fontsize=6, color="0.3", bbox=PAPER)
    if row != "effects":
        axis.set_ylim(-1.02, 1.02)
