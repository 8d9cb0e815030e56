"""Study B: what compression by every method does to the features, beside what it costs the model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import (
    DENSE,
    FAMILIES,
    FLOOR,
    at_first_site,
    by_family,
    grid,
    log_y,
    span,
    with_interval,
    write_above,
)
from feature_survival.metrics.survival import FIXED, PAIRINGS
from feature_survival.thresholds import KEPT, MAIN_TAU, VIABLE

FVU = "FVU ratio"
ROWS = {pairing: f"survival at tau = {MAIN_TAU}\n({pairing})".replace(", ", ",\n") for pairing in PAIRINGS}
ROWS |= {
    FIXED: f"correlation > {KEPT}\n({FIXED})",
    FVU: "FVU / FVU dense\n(dense model's SAE)\n[log scale]",
}
COLUMNS = ["model", "site", "condition", "method", "group", "rung", "perplexity_ratio", "fvu_ratio", "pairing"]
COLUMNS += ["survival", "low", "high", "n_features"]
LEAST = 1e-3  # of perplexity / dense - 1: less, or a gain, stands here
LADDER = "wanda"  # the method whose levels are joined
COLOURS = dict(zip(FAMILIES, ["#0072B2", "#009E73", "#D55E00", "#CC79A7", "0.35"], strict=True))
MARKERS = "s^DvPX<>"


def figure(results: Path) -> Figure:
    """The figure, from `compressors.csv`, at the site that every condition was measured at."""
    table, site = at_first_site(read_csv(results / "compressors.csv", COLUMNS))
    table = table.assign(
        panel=table["model"] + ", " + site,
        cost=(table["perplexity_ratio"] - 1).clip(lower=LEAST),
    )
    pairings = {*table["pairing"], FVU}
    panel = partial(_panel, looks=_looks(table), most=table["cost"].max(), tops=table.groupby("pairing")["high"].max())
    return grid(
        table,
        "panel",
        {name: label for name, label in ROWS.items() if name in pairings},
        panel,
        xlabel="perplexity / dense - 1\n[log scale]",
        row_height=1.65,
        title_pad=13,
        legend_columns=4,
        legend_order=lambda label: label.startswith(("ceiling", "viable")),
    )


def _looks(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """A colour a family and, within it, a marker a condition; the joined levels share one look."""
    rungs = set(table.loc[table["rung"], "condition"])
    families = by_family(table)
    looks: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        markers = iter(MARKERS * len(families))
        for condition in (name for name, of in families.items() if of == family):
            look = (
                {"marker": "o", "linestyle": "-"}
                if condition in rungs
                else {"marker": next(markers), "linestyle": "none"}
            )
            looks[condition] = {"color": COLOURS[family], **look}
    return looks


def _panel(
    axis: Axes, table: pd.DataFrame, row: str, looks: dict[str, dict[str, Any]], most: float, tops: pd.Series
) -> None:
    """A marker a compressed model, with 95% interval where there is one; what two dense SAEs reach as a line."""
    cells = table[table["pairing"] == (FIXED if row == FVU else row)]
    ladder = [condition for condition, look in looks.items() if look["linestyle"] == "-"]
    joined = cells[cells["condition"].isin(ladder)].sort_values("cost")
    series = [(joined, f"{LADDER}, levels joined", looks[ladder[0]])] if ladder else []
    series += [(cells[cells["condition"] == name], name, look) for name, look in looks.items() if name not in ladder]
    for rows, label, look in series:
        if row == FVU:
            axis.plot(rows["cost"], rows["fvu_ratio"], **look, label=label)
        else:
            bars = {"elinewidth": 0.8, "label": label}
            with_interval(axis, rows["cost"], rows, "survival", ["low", "high"], **look, **bars)
    if row == FVU:
        log_y(axis)
        axis.axhline(VIABLE, **FLOOR, linestyle=(0, (6, 3)), zorder=1, label=f"viable below {VIABLE}")
    else:
        for ceiling in cells.loc[cells["condition"] == DENSE, "survival"] if row != FIXED else []:
            axis.axhline(ceiling, **FLOOR, zorder=1, label="ceiling: two dense SAEs")
        axis.set_ylim(-0.04 * tops[row], 1.04 * tops[row])
        write_above(axis, f"n = {span(cells['n_features'])} features")
    axis.set_xscale("log")
    axis.set_xlim(0.6 * LEAST, 2 * most)
    axis.xaxis.set_major_locator(LogLocator())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"at most\n{x:g}" if x <= LEAST else f"{x:g}"))
