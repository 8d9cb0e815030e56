"""RQ4: survival by quintile of dense firing rate, a column a model, a row a pairing of seeds.

Same-init pairs stand above different-init ones: a rare feature that "survives" only where both SAEs started from the
same weights did not survive, it never moved. The last row needs no second SAE.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import by_pairing, model_grid, quintile_panel
from feature_survival.metrics.survival import FIXED, PAIRINGS
from feature_survival.thresholds import KEPT, MAIN_TAU

COLUMNS = ["model", "series", "sparsity", "pairing", "quintile", "survival", "low", "high", "n_features", "n_saes"]


def figure(results: Path) -> Figure:
    """The figure, from `fragility.csv`."""
    table = read_csv(results / "fragility.csv", COLUMNS)
    rows = by_pairing(f"survival at tau = {MAIN_TAU}", *PAIRINGS) | {FIXED: f"correlation > {KEPT}\n({FIXED})"}
    return model_grid(table, rows, _panel, xlabel="quintile of dense firing rate\n(1 = rarest)")


def _panel(axis: Axes, table: pd.DataFrame, pairing: str, looks: dict[str, Any]) -> None:
    quintile_panel(axis, table[table["pairing"] == pairing], "quintile", 0.06, looks)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xticks(range(1, 6))
