"""RQ3: the dense model's SAE on the pruned model, beside the SAE retrained on it, and what became of its features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import DENSE, FLOOR, SPARSITY, STEP, model_grid, with_interval, write_counts
from feature_survival.metrics import RETRAINED, TRANSFERRED
from feature_survival.thresholds import DAMAGED, KEPT, VIABLE

ROWS = {
    "fvu_ratio": "FVU / FVU on the\ndense model",
    "ce_loss_score": "CE-loss score",
    "kept": "share of dense features\n(fixed dictionary)",
}
COLUMNS = ["model", "series", "achieved_sparsity", "sae", "n_saes", "n_features", "damaged"] + [
    f"{row}{end}" for row in ROWS for end in ("", "_low", "_high")
]


def figure(results: Path) -> Figure:
    """The figure, from `transfer.csv`."""
    table = read_csv(results / "transfer.csv", COLUMNS)
    table["achieved_sparsity"] *= 100
    return model_grid(table[table["series"] != DENSE], ROWS, _panel, xlabel=SPARSITY)


def _panel(axis: Axes, table: pd.DataFrame, row: str, looks: dict[str, Any]) -> None:
    """A line a method and SAE; bars from the lowest to the highest SAE, or 95% intervals over features."""
    for number, (series, look) in enumerate(looks.items()):
        of_series = table[table["series"] == series].sort_values("achieved_sparsity")
        old, new = (of_series[of_series["sae"] == kind] for kind in (TRANSFERRED, RETRAINED))
        x = old["achieved_sparsity"] + STEP * number
        if row == "kept":
            label = f"{series}: correlation > {KEPT} (kept), 95% interval"
            with_interval(axis, x, old, "kept", ["kept_low", "kept_high"], **look, label=label)
            label = f"thin lines: correlation < {DAMAGED} (damaged)"
            axis.plot(x, old["damaged"], color=look["color"], linestyle=look["linestyle"], lw=0.6, label=label)
        else:
            ends = [f"{row}_low", f"{row}_high"]
            name = f"{series}: SAE of the dense model, range of {old['n_saes'].max()} SAEs"
            with_interval(axis, x, old, row, ends, **look, label=name)
            name = f"{series}: SAE retrained on the pruned model, range of {new['n_saes'].max()} SAEs"
            hollow = {**look, "markerfacecolor": "white", "linewidth": 0.7}
            with_interval(
                axis, new["achieved_sparsity"] + STEP * (number + len(looks)), new, row, ends, **hollow, label=name
            )
    if row == "fvu_ratio":
        axis.axhline(VIABLE, **FLOOR, linestyle=(0, (6, 3)), label=f"viable below {VIABLE} (fixed in advance)")
    elif row == "kept":
        axis.set_ylim(-0.02, 1.02)
        write_counts(axis, table[table["sae"] == TRANSFERRED], y=0.12)
