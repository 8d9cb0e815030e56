"""One look for all figures: paper column widths, colour-blind-safe, telling apart in grey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.metrics.survival import PAIRINGS

COLUMN_WIDTH = 3.5  # inches
FULL_WIDTH = 7.0  # two columns

STYLE: Any = {  # matplotlib's own type lists every key
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,
    "svg.hashsalt": "feature-survival",
}

# Okabe-Ito colours of clearly different lightness; marker and dash repeat what colour says.
LOOKS: list[dict[str, Any]] = [
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": (0, (1, 1))},
    {"color": "#E69F00", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (3, 1, 1, 1))},
]
FLOOR: dict[str, Any] = {"color": "0.35", "linewidth": 0.9}
PAPER: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}  # behind text
DENSE = "dense"


def pairing_grid(
    table: pd.DataFrame, panel: Callable[[Axes, pd.DataFrame, str, dict[str, Any]], None], ylabel: str, xlabel: str
) -> Figure:
    """A column a model, a row a pairing of seeds, one vertical scale a row, one legend below.

    `panel` draws one model's rows of `table` on an axis, given the pairing and the look of each series.
    """
    models = list(table["model"].unique())
    series = sorted(set(table["series"]) - {DENSE})
    looks = {name: LOOKS[number % len(LOOKS)] for number, name in enumerate(series)}
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
            panel(axes[row, column], table[table["model"] == model], pairing, looks)
        # Once a row, when all its panels are drawn; a floor of zero stays visible.
        axes[row, 0].set_ylim(bottom=-0.02 * axes[row, 0].get_ylim()[1])
        axes[row, 0].set_ylabel(f"{ylabel}\n({pairing})")
    for column, model in enumerate(models):
        axes[0, column].set_title(model)
        axes[-1, column].set_xlabel(xlabel)
    _legend_below(canvas, columns=2 if len(models) > 1 else 1)
    return canvas


def write_counts(axis: Axes, rows: pd.DataFrame) -> None:
    """In the lower left corner: how many features of how many dense SAEs stand behind the lines."""
    counts = rows["n_features"]
    span = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()}-{counts.max()}"
    note = f"n = {span} features of {rows['n_saes'].max()} dense SAEs"
    axis.text(0.03, 0.05, note, transform=axis.transAxes, fontsize=6.5, color="0.3", bbox=PAPER)


def _legend_below(canvas: Figure, columns: int) -> None:
    """One legend for all panels: series first, then thin lines, then ceilings and floors."""
    entries: dict[str, Any] = {}
    for axis in canvas.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    order = sorted(entries, key=lambda label: (label.startswith(("ceiling", "floor")), label.startswith("thin"), label))
    canvas.legend([entries[label] for label in order], order, ncols=columns, frameon=False, loc="outside lower center")
