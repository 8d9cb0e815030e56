"""Study B: how much of its weights the dense model's SAE may lose, on the main compressed model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import FLOOR, grid, log_y, looks_of, span, write_above
from feature_survival.metrics import BOTH, DECODER, ENCODER, PARTS, PRETRAINED, SAE_SCORES
from feature_survival.thresholds import VIABLE

COLUMNS = ["model", "site", "condition", "kind", "score", "part", "level", "tokens"]
COLUMNS += ["fvu_ratio", "fvu_seed_range", "fvu_of_retrained"]
NAMES = {BOTH: "encoder and decoder", ENCODER: "encoder only", DECODER: "decoder only"}


def figure(results: Path) -> Figure:
    """The figure, from `sae_pruning_sweep.csv`."""
    table = read_csv(results / "sae_pruning_sweep.csv", COLUMNS)
    rows = {model: f"{model}\nFVU / FVU of the\nretrained SAE [log scale]" for model in table["model"].unique()}
    table = table.assign(panel=table["site"] + ", " + table["condition"])
    panel = partial(_panel, looks=looks_of(PARTS))
    xlabel = "weights pruned [% of the part]\n(0: the whole pretrained SAE)"
    height = max(2.0, 3.6 / max(1, len(rows)))  # of one row, enough for the legend
    return grid(table, "panel", rows, panel, xlabel, height, sharey=True, title_pad=13, legend_columns=3)


def _panel(axis: Axes, table: pd.DataFrame, model: str, looks: dict[str, Any]) -> None:
    """A line a part and score, from the pretrained SAE on; the retrained one with the range over seeds."""
    table = table[table["model"] == model]
    log_y(axis)
    if table.empty:
        return
    for part, look in looks.items():
        for score in SAE_SCORES[::-1]:
            pruned = (table["part"] == part) & (table["score"] == score)
            if not pruned.any():
                continue
            line = table[pruned | (table["kind"] == PRETRAINED)].sort_values("level")
            style = {"linestyle": "-"} if score == "wanda" else {"linestyle": "--", "markerfacecolor": "white"}
            name = "Wanda score" if score == "wanda" else score
            axis.plot(100 * line["level"], line["fvu_ratio"], **{**look, **style}, label=f"{NAMES[part]}, {name}")
    reach = (table["fvu_seed_range"] / table["fvu_of_retrained"]).iloc[0]
    axis.axhline(1, **FLOOR, zorder=1, label="SAE retrained on the compressed model")
    label = "retrained \u00b1 range over seeds of dense SAEs"
    axis.axhspan(1 - reach, 1 + reach, color=FLOOR["color"], alpha=0.15, linewidth=0, label=label)
    axis.axhline(VIABLE, **FLOOR, linestyle=(0, (6, 3)), zorder=1, label=f"{VIABLE} times (fixed in advance)")
    axis.set_xticks(100 * table["level"].drop_duplicates().sort_values())
    write_above(axis, f"n = {span(table['tokens'])} tokens")
