"""Study B: the dense model's SAE, the one retrained and the pruned ones, on the main compressed model, site by site."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival.artifacts import read_csv
from feature_survival.figures.style import FLOOR, grid, log_y, looks_of, span, write_above
from feature_survival.metrics import PRETRAINED, PRUNED, RETRAINED, STANDARD

ROWS = {
    "fvu": "FVU\n[log scale]",
    "ce_loss_score": "CE-loss score",
    "absorption": "absorption\n(mean fraction)",
    "disentanglement": "disentanglement\nscore",
    "probing_5": "accuracy of\n5-latent probes",
}
COUNTED = {  # what a row is measured over: column, and what it counts
    "fvu": ("tokens", "tokens"),
    "ce_loss_score": ("splice_tokens", "tokens"),
    "absorption": ("n_letters", "letters"),
    "disentanglement": ("n_attributes", "attributes"),
    "probing_5": ("n_tasks", "tasks"),
}
CHANCE = {"disentanglement": 0.5, "probing_5": 0.5}  # latents that change nothing leave isolation 1, cause 0
COLUMNS = ["model", "site", "condition", "sae", "kind", "variant", "score", "level", "l0", *ROWS]
COLUMNS += [column for column, _ in COUNTED.values()]
APART = 0.25  # between models at a variant; of it, a fifth to either side between scores
LABELS = {"wanda": "by Wanda score", "magnitude": "by magnitude"}
NOTHING = "0.5: chance, or no effect"


def figure(results: Path) -> Figure:
    """The figure, from `variants_by_site.csv`: the condition that every score was measured on."""
    table = read_csv(results / "variants_by_site.csv", COLUMNS)
    table = table[(table["sae"] == STANDARD) & table["n_tasks"].notna()]
    levels = table[table["kind"] == PRUNED].sort_values("level")
    order = [PRETRAINED, RETRAINED, *levels["variant"].unique()]
    table = table.assign(panel=table["site"] + ", " + table["condition"], x=table["variant"].map(order.index))
    panel = partial(_panel, looks=looks_of(list(table["model"].unique())), order=order)
    return grid(
        table,
        "panel",
        ROWS,
        panel,
        xlabel="SAE on the compressed model",
        row_height=1.45,
        title_pad=13,
        legend_columns=3,
        legend_order=lambda label: label != NOTHING,  # first, so that each model has a column of its own
    )


def _panel(axis: Axes, table: pd.DataFrame, row: str, looks: dict[str, Any], order: list[str]) -> None:
    """Markers for whole SAEs, a line a score over levels of pruning: filled for Wanda's, hollow for magnitude."""
    for number, (model, look) in enumerate(looks.items()):
        of_model = table[table["model"] == model]
        shift = APART * (number - (len(looks) - 1) / 2)
        whole = of_model[of_model["kind"] != PRUNED].sort_values("x")
        axis.plot(whole["x"] + shift, whole[row], **{**look, "linestyle": "none"})
        for side, (score, label) in zip((-1, 1), LABELS.items(), strict=True):
            pruned = of_model[of_model["score"] == score].sort_values("level")
            style = {**look, "markerfacecolor": look["color"] if score == "wanda" else "white", "linewidth": 0.9}
            axis.plot(pruned["x"] + shift + side * APART / 5, pruned[row], **style, label=f"{model}, {label}")
    if row in CHANCE:
        axis.axhline(CHANCE[row], **FLOOR, linestyle=":", zorder=1, label=NOTHING)
    axis.set_ymargin(0.1)
    if row == "fvu":
        log_y(axis)
    column, counted = COUNTED[row]
    note = f"n = {span(table[column].astype(int))} {counted}"
    write_above(axis, f"L0 {span(table['l0'].round(1))}; {note}" if row == "fvu" else note)
    axis.set_xticks(range(len(order)), order, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.5, len(order) - 0.5)
