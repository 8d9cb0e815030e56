"""One look for all figures: paper column widths, colour-blind-safe, telling apart in grey."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from feature_survival.recipes import METHOD_KEYS, PRUNING, QUANTIZATION
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
FAMILIES = ("unstructured", "N:M pattern", "quantized", "low rank", "random weights")  # of compressed models

Share = bool | Literal["none", "all", "row", "col"]
Panel = Callable[[Axes, pd.DataFrame, str, dict[str, Any]], None]


def model_grid(table: pd.DataFrame, rows: dict[str, str], panel: Panel, xlabel: str, row_height: float = 2.0) -> Figure:
    """A `grid` of a column a model; `panel` is also given the look of each series."""
    looks = looks_of(sorted(set(table.get("series", [])) - {DENSE}))

    def of_model(axis: Axes, part: pd.DataFrame, row: str) -> None:
        panel(axis, part, row, looks)

    return grid(table, "model", rows, of_model, xlabel, row_height, legend_order=_series_first)


def looks_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A look of its own for each of up to six names."""
    return {name: LOOKS[number % len(LOOKS)] for number, name in enumerate(names)}


def grid(
    table: pd.DataFrame,
    by: str,
    rows: dict[str, str],
    panel: Callable[[Axes, pd.DataFrame, str], None],
    xlabel: str,
    row_height: float = 2.0,
    sharex: Share = True,
    sharey: Share = "row",
    title_pad: float | None = None,
    legend_columns: int = 2,
    legend_order: Callable[[str], Any] | None = None,
) -> Figure:
    """A column a value of the table's column `by`, a row a question, one vertical scale a row, one legend below.

    rows: the label of the vertical axis of each row, by the row's name. `panel` draws the table's rows of one value on
    an axis, given the row's name. row_height: inches; title_pad: points; the legend's columns are halved where the
    figure has one column. InputError where the table has no rows.
    """
    if table.empty:
        raise InputError("the table this figure is drawn from has no rows; the grid lacks the cells it is about")
    columns = list(table[by].unique())
    wide = len(columns) > 1
    size = (FULL_WIDTH if wide else COLUMN_WIDTH, row_height * len(rows))
    canvas = Figure(figsize=size, layout="constrained")
    axes = canvas.subplots(len(rows), len(columns), sharex=sharex, sharey=sharey, squeeze=False)
    for row, (name, label) in enumerate(rows.items()):
        for column, value in enumerate(columns):
            panel(axes[row, column], table[table[by] == value], name)
        axes[row, 0].set_ylabel(label)
    for column, value in enumerate(columns):
        axes[0, column].set_title(value, pad=title_pad)
        axes[-1, column].set_xlabel(xlabel)
    _legend_below(canvas, legend_columns if wide else max(1, legend_columns // 2), legend_order)
    return canvas


def at_first_site(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of the site with most of them, of equals the first, and its name: the site that sees every condition."""
    site = "" if table.empty else str(table.groupby("site", sort=False).size().idxmax())
    return table[table["site"] == site], site


def by_family(conditions: pd.DataFrame) -> dict[str, str]:
    """Family of each compressed model by the condition's name, families in order.

    conditions: columns `condition`, `method`, `group`.
    """
    families = {}
    distinct = conditions[["condition", "method", "group"]].drop_duplicates()
    for condition, method, group in distinct.itertuples(index=False):
        keys = METHOD_KEYS[method]
        if method == "random":
            families[condition] = "random weights"
        elif keys == PRUNING:
            families[condition] = "N:M pattern" if ":" in group else "unstructured"
        elif keys:
            families[condition] = "quantized" if keys == QUANTIZATION else "low rank"
    return dict(sorted(families.items(), key=lambda item: FAMILIES.index(item[1])))


class PlainLog(Locator):
    """Ticks of a logarithmic axis at 1, 2 and 5 times the powers of ten; evenly spaced where it spans little."""

    def __call__(self) -> Sequence[float]:
        """Ticks within the axis's limits."""
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Ticks from one positive value to another."""
        some = MaxNLocator(6, steps=[1, 2, 5, 10]) if vmax < 8 * vmin else LogLocator(subs=(1, 2, 5))
        return [tick for tick in some.tick_values(vmin, vmax) if vmin <= tick <= vmax]


def log_y(axis: Axes) -> None:
    """A logarithmic vertical axis with plain numbers at its ticks."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(PlainLog())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


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
    note = f"n = {span(rows['n_features'].astype(int))} features of {rows['n_saes'].max()} dense SAEs"
    axis.text(0.03, y, note, transform=axis.transAxes, fontsize=6.5, color="0.3", bbox=PAPER)


def span(values: pd.Series) -> str:
    """The lowest and highest value, or the only one, e.g. `812-903`."""
    low, high = f"{values.min()}", f"{values.max()}"
    return low if low == high else f"{low}-{high}"


def write_above(axis: Axes, note: str) -> None:
    """A note above an axis, at its right end, where no line runs; the topmost row needs a `title_pad`."""
    axis.text(1.0, 1.02, note, transform=axis.transAxes, fontsize=6.5, color="0.3", ha="right", va="bottom")


def _series_first(label: str) -> tuple[bool, bool, str]:
    """Order of a legend: series, then thin lines, then ceilings and floors."""
    return label.startswith(("ceiling", "floor")), label.startswith("thin"), label


def _legend_below(canvas: Figure, columns: int, order: Callable[[str], Any] | None) -> None:
    """One legend for all panels, sorted by a key of the label, or as drawn."""
    entries: dict[str, Any] = {}
    for axis in canvas.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    labels = sorted(entries, key=order) if order else list(entries)
    canvas.legend(
        [entries[label] for label in labels], labels, ncols=columns, frameon=False, loc="outside lower center"
    )
