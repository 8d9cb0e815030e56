"""Study B: which latents pruning an SAE takes from, by firing rate, encoder norm and nearest neighbour."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import FLOOR, at_first_site, grid, looks_of, span, with_interval, write_above
from feature_survival.metrics import DECODER, ENCODER, SAE_SCORES

COLUMNS = ["model", "site", "score", "level", "predictor", "n_latents", "fifth", "part", "left", "low", "high"]
LEVEL = 0.5  # of the levels that were pruned to, the nearest is shown
APART = 0.07  # between lines, so that intervals do not hide each other


def figure(results: Path) -> Figure:
    """The figure, from `latents.csv`, at the first site."""
    table, site = at_first_site(read_csv(results / "latents.csv", COLUMNS))
    levels = table["level"].drop_duplicates()
    table = table[table["level"] == min(levels, key=lambda level: abs(level - LEVEL), default=LEVEL)]
    table = table.assign(panel=table["model"] + ", " + site)
    rows = {name: f"share of squared norm left\n(by {name})" for name in table["predictor"].unique()}
    panel = partial(_panel, looks=looks_of(SAE_SCORES))
    return grid(
        table,
        "panel",
        rows,
        panel,
        xlabel="fifth of latents (1 = lowest)",
        row_height=1.9,
        sharey=True,
        title_pad=13,
        legend_columns=3,
        legend_order=lambda label: label.startswith("left"),
    )


def _panel(axis: Axes, table: pd.DataFrame, predictor: str, looks: dict[str, Any]) -> None:
    """A line a score and part, with 95% intervals, beside what pruning at random would leave."""
    rows = table[table["predictor"] == predictor]
    number = 0
    for score, look in looks.items():
        name = "Wanda score" if score == "wanda" else score
        for part, dash in ((DECODER, "-"), (ENCODER, "--")):
            line = rows[(rows["score"] == score) & (rows["part"] == part)].sort_values("fifth")
            style = {**look, "linestyle": dash, "markerfacecolor": look["color"] if dash == "-" else "white"}
            x = line["fifth"] + APART * (number - 1.5)
            with_interval(axis, x, line, "left", ["low", "high"], **style, label=f"{part}, {name}, 95% interval")
            number += 1
    if rows.empty:
        return
    level = rows["level"].iloc[0]
    label = f"left if pruned at random ({100 * (1 - level):g}%)"
    axis.axhline(1 - level, **FLOOR, linestyle=":", zorder=1, label=label)
    axis.set_xticks(range(1, 6))
    axis.set_ylim(-0.03, 1.03)
    write_above(axis, f"n = {span(rows['n_latents'])} latents, {100 * level:g}% of weights pruned")
