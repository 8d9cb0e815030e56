"""One look for all figures: paper column widths, colour-blind-safe, telling apart in grey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.schema import InputError

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
STEP = 0.6  # points of sparsity between series, so that intervals at equal sparsity do not hide each other
SPARSITY = f"achieved sparsity [%]\n(series set {STEP} points apart)"


Panel = Callable[[Axes, pd.DataFrame, str, dict[str, Any]], None]


def model_grid(table: pd.DataFrame, rows: dict[str, str], panel: Panel, xlabel: str, row_height: float = 2.0) -> Figure:
    """A column a model, a row a question, one vertical scale a row, one legend below.

    rows: the label of the vertical axis of each row, by the row's name. `panel` draws one model's rows of `table` on an
    axis, given the row's name and the look of each series. InputError where the table has no rows.
    """
    if table.empty:
        raise InputError("the table this figure is drawn from has no rows; the grid lacks the cells it is about")
    models = list(table["model"].unique())
    series = sorted(set(table.get("series", [])) - {DENSE})
    looks = {name: LOOKS[number % len(LOOKS)] for number, name in enumerate(series)}
    canvas, axes = plt.subplots(
        len(rows),
        len(models),
        figsize=(FULL_WIDTH if len(models) > 1 else COLUMN_WIDTH, row_height * len(rows)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for row, (name, label) in enumerate(rows.items()):
        for column, model in enumerate(models):
            panel(axes[row, column], table[table["model"] == model], name, looks)
        axes[row, 0].set_ylabel(label)
    for column, model in enumerate(models):
        axes[0, column].set_title(model)
        axes[-1, column].set_xlabel(xlabel)
    _legend_below(canvas, columns=2 if len(models) > 1 else 1)
    return canvas


def by_pairing(ylabel: str, *pairings: str) -> dict[str, str]:
    """Rows of `model_grid`, one a pairing of seeds."""
    return {pairing: f"{ylabel}\n({pairing})" for pairing in pairings}


def with_interval(axis: Axes, x: pd.Series, rows: pd.DataFrame, value: str, ends: list[str], **look: Any) -> None:
    """A line through the values, with bars from the lower to the upper of two columns."""
    bars = [rows[value] - rows[ends[0]], rows[ends[1]] - rows[value]]
    axis.errorbar(x, rows[value], yerr=bars, capsize=2, **look)


def quintile_panel(axis: Axes, table: pd.DataFrame, x: str, step: float, looks: dict[str, Any]) -> None:
    """Survival along column `x`, of one model and pairing: lowest and highest sparsity of each series with 95%
    intervals, those between as thin lines, dense in grey. Series are set `step` apart, so that none hides another.
    """
    dense = table[table["series"] == DENSE]
    if len(dense):
        axis.plot(dense[x], dense["survival"], **FLOOR, label="ceiling: two dense SAEs, paired as the row says")
        axis.fill_between(dense[x], dense["low"], dense["high"], color=FLOOR["color"], alpha=0.15, linewidth=0)
    for number, (series, look) in enumerate(looks.items()):
        of_series = table[table["series"] == series]
        ends = of_series["sparsity"].min(), of_series["sparsity"].max()
        for level, line in of_series.groupby("sparsity"):
            at = line[x] + step * number
            if level in ends:
                fill = "white" if level == ends[0] < ends[1] else look["color"]
                label = f"{series} {100 * line['sparsity'].iloc[0]:.0f}%, 95% interval"
                with_interval(axis, at, line, "survival", ["low", "high"], **look, label=label, markerfacecolor=fill)
            else:
                label = "thin lines: the sparsities between"
                axis.plot(at, line["survival"], color=look["color"], linestyle=look["linestyle"], lw=0.5, label=label)
    pruned = table[table["series"] != DENSE]
    if len(pruned):
        write_counts(axis, pruned, y=0.92 if table["high"].max() < 0.5 else 0.05)  # where no line runs


def write_counts(axis: Axes, rows: pd.DataFrame, y: float = 0.05) -> None:
    """At height `y` of the axis: how many features of how many dense SAEs stand behind the lines."""
    counts = rows["n_features"].astype(int)
    span = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()}-{counts.max()}"
    note = f"n = {span} features of {rows['n_saes'].max()} dense SAEs"
    axis.text(0.03, y, note, transform=axis.transAxes, fontsize=6.5, color="0.3", bbox=PAPER)


def _legend_below(canvas: Figure, columns: int) -> None:
    """One legend for all panels: series first, then thin lines, then ceilings and floors."""
    entries: dict[str, Any] = {}
    for axis in canvas.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    order = sorted(entries, key=lambda label: (label.startswith(("ceiling", "floor")), label.startswith("thin"), label))
    canvas.legend([entries[label] for label in order], order, ncols=columns, frameon=False, loc="outside lower center")
