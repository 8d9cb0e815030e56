"""What a figure of the report is made of: points of `results/`, each with its interval and what stands behind it.

A chart is a grid of panels, a column a model (or a site) and a row a question; a line is drawn through points of one
name. Nothing is computed here but layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from feature_survival.figures.style import DENSE
from feature_survival.thresholds import MAIN_TAU

SOLID, DASHED, THIN, MARKS = "solid", "dashed", "thin", "marks"  # how a line looks
GREY = 6  # number of a colour beside those of methods, 0-5
POINT = ("model", "method", "site", "row", "line", "x", "y", "low", "high", "n")


class Chart(NamedTuple):
    """One figure."""

    name: str
    title: str
    says: str  # how to read it
    tables: tuple[str, ...]  # of results/, that claims on it are tested on
    x: str
    rows: dict[str, str]  # what a row shows (the vertical axis), by its name
    points: pd.DataFrame  # columns POINT; `method` is empty where a filter by method leaves a point alone
    looks: dict[str, tuple[int, str]]  # colour and style by line
    references: list[dict[str, Any]]  # horizontal lines: model (all where empty), row, label, y
    across: str = "model"  # a column each
    categories: tuple[str, ...] = ()  # names of x 0, 1, ...
    log: str = ""  # axes that are logarithmic: "", "x" or "y"


def points_of(table: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """Points of a table's rows; what is not given is the table's own column of that name, or nothing."""
    own = {name: table[name] for name in POINT if name in table}
    nothing = {"method": "", "site": None, "row": "", "low": None, "high": None}
    return pd.DataFrame({**nothing, **own, **columns}, index=table.index)[list(POINT)]


def each(template: str, table: pd.DataFrame) -> list[str]:
    """A text a row, with the row's values."""
    return [template.format(**{str(name): of for name, of in row.items()}) for row in table.to_dict("records")]


def with_taus(table: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """The rows at the main tau (and those without one), with the values at the others as text in column `taus`."""
    others = table[table["tau"].notna() & (table["tau"] != MAIN_TAU)].sort_values("tau")
    texts: dict[Any, str] = {}
    for row in others.to_dict("records"):
        key = tuple(row[name] for name in keys)
        texts[key] = f"{texts.get(key, '')}; at tau {row['tau']:g}: {row[value]:.3f}"
    main = table[(table["tau"] == MAIN_TAU) | table["tau"].isna()]
    return main.assign(taus=[texts.get(tuple(row), "") for row in main[keys].itertuples(index=False)])


def series_of(table: pd.DataFrame) -> list[str]:
    """What the cells of a table are drawn as lines of, the dense ones apart."""
    return sorted(set(table["series"]) - {DENSE})


def looks_of(names: Iterable[str], style: str = SOLID) -> dict[str, tuple[int, str]]:
    """A colour of its own for each of up to six names."""
    return {name: (number % GREY, style) for number, name in enumerate(names)}


def rows_by_pairing(label: str, *pairings: str) -> dict[str, str]:
    """A row a pairing of seeds."""
    return {pairing: f"{label} ({pairing})" for pairing in pairings}


def levels(reference: float, label: str, *rows: str) -> list[dict[str, Any]]:
    """A horizontal line through rows, for every model."""
    return [{"model": "", "row": row, "label": label, "y": reference} for row in rows]
