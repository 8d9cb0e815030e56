"""The initialisation control: survival against how far a dense feature moved from the weights it started from.

Where SAEs share those weights, features that barely moved may be "found again" because neither copy moved. With another
start no such advantage exists, so a line that falls in the upper rows and rises in the last one shows the confound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import by_pairing, model_grid, quintile_panel
from feature_survival.metrics.survival import PAIRINGS
from feature_survival.thresholds import MAIN_TAU

COLUMNS = ["model", "series", "sparsity", "pairing", "displacement", "survival", "low", "high", "n_features", "n_saes"]


def figure(results: Path) -> Figure:
    """The figure, from `displacement.csv`."""
    table = read_csv(results / "displacement.csv", COLUMNS)
    rows = by_pairing(f"survival at tau = {MAIN_TAU}", *PAIRINGS)
    return model_grid(table, rows, _panel, xlabel="displacement, mean of a quintile\n(1 - cosine to initialisation)")


def _panel(axis: Axes, table: pd.DataFrame, pairing: str, looks: dict[str, Any]) -> None:
    quintile_panel(axis, table[table["pairing"] == pairing], "displacement", 0.002, looks)
    axis.set_ylim(-0.02, 1.02)
