"""Printed tables, in Markdown and LaTeX, from `results/` alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from feature_survival.artifacts import atomic_file, read_csv
from feature_survival.config import MAIN_TAU
from feature_survival.metrics.survival import OTHER_INIT, OTHER_ORDER, SAME_SEEDS


def cells(results: Path) -> pd.DataFrame:
    """One row a cell: achieved sparsity, perplexity, survival for three pairings at tau = .7, FVU, L0."""
    table = read_csv(
        results / "cells.csv", ["model", "condition", "achieved_sparsity", "perplexity", "fvu", "l0", "share_dead"]
    )
    survival = read_csv(results / "survival.csv", ["model", "condition", "pairing", "tau", "survival", "low", "high"])
    out = pd.DataFrame(
        {
            "model": table["model"],
            "condition": table["condition"],
            "sparsity": (100 * table["achieved_sparsity"]).map("{:.1f}%".format),
            "perplexity": table["perplexity"].map("{:.2f}".format),
        }
    )
    for heading, pairing in (("same seeds", SAME_SEEDS), ("other order", OTHER_ORDER), ("other init", OTHER_INIT)):
        rows = survival[(survival["pairing"] == pairing) & (survival["tau"] == MAIN_TAU)]
        text = {
            (row.model, row.condition): f"{row.survival:.3f} [{row.low:.3f}, {row.high:.3f}]"
            for row in rows.itertuples()
        }
        keys = zip(table["model"], table["condition"], strict=True)
        out[heading] = [text.get(key, "-") for key in keys]
    out["FVU"] = table["fvu"].map("{:.3f}".format)
    out["L0"] = table["l0"].map("{:.1f}".format)
    out["dead"] = (100 * table["share_dead"]).map("{:.1f}%".format)
    return out


class Table(NamedTuple):
    """How a table is made, and the sentence that says how to read it."""

    make: Callable[[Path], pd.DataFrame]
    caption: str


TABLES = {
    "cells": Table(
        cells,
        "Every cell of the grid. Survival of the dense model's alive features at "
        f"tau = {MAIN_TAU}, with 95% cluster-bootstrap intervals, for SAEs that share starting weights and token order "
        "(same seeds), starting weights only (other order), or neither (other init). The dense row holds what two SAEs "
        "of the dense model reach. FVU, L0 and dead features are means over the cell's own SAEs.",
    ),
}


def write(results: Path, folder: Path) -> None:
    """Write every table as `<name>.md` and `<name>.tex`."""
    for name, (make, caption) in TABLES.items():
        table = make(results)
        with atomic_file(folder / f"{name}.md") as path:
            markdown = table.to_markdown(index=False, disable_numparse=True)
            path.write_text(f"{caption}\n\n{markdown}\n", encoding="utf-8")
        with atomic_file(folder / f"{name}.tex") as path:
            latex = table.map(_latex).rename(columns=_latex)
            text = latex.to_latex(index=False, escape=False, caption=_latex(caption), label=f"tab:{name}")
            path.write_text(text, encoding="utf-8")


def _latex(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_")
