"""Two runs' tables, number by number: which numbers differ, and how they may."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from feature_survival.artifacts import read_csv
from feature_survival.summarize import variants

BESIDE_RESULTS = ("environment", "spread")  # in the folder of results, and none
KEYS = {"sparsity", "tau", "level", "quintile", "fifth", "init_seed", "data_seed", "step"}  # numbers that name a row
REPEATED = {"model", "architecture", "site", "seed", "init_seed", "data_seed"}  # of these a question has many
FAMILYWISE = "p_holm"  # depends on other cells' rows
SAME, SEEDS, MODELS, MIXED = "not recomputed", "SAE seeds", "models", "mixed"  # what two numbers differ by


class Again(NamedTuple):
    """What was computed again, as DVC addresses stages: `base@tiny`, `metrics@tiny-dense`, `variants@tiny-mlp_out`."""

    recomputed: set[str]
    changed: set[str]  # of those, whose bytes are not the published ones

    def differ_by(self, stages: set[str], model: str) -> str:
        """Why numbers that are made of these stages' outputs may differ."""
        if not stages & self.changed:
            return SAME
        if not stages <= self.recomputed:
            return MIXED
        return MODELS if f"base@{model}" in self.changed else SEEDS


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """All tables of a results folder."""
    return {path.stem: read_csv(path) for path in sorted(folder.glob("*.csv")) if path.stem not in BESIDE_RESULTS}


def align(name: str, published: pd.DataFrame, recomputed: pd.DataFrame, again: Again) -> pd.DataFrame:
    """One row a number: table, row, question, column, published, recomputed, present, anew, by.

    row: its keys as text. question: the keys but for those of which a question has many. present: whether both sides
    have the row. anew: whether all it is made of was computed again. by: SAME, SEEDS, MODELS or MIXED. Columns of true
    and false follow from numbers, and are left out.
    """
    keys, recomputed = _keys(published), recomputed.reindex(columns=published.columns)
    sides = [_named(table, keys) for table in (published, recomputed)]
    both = sides[0].merge(sides[1], how="outer", on=[*keys, "count"], suffixes=("", " again"), indicator=True)
    rows = [dict(zip(keys, words, strict=True)) for words in both[keys].itertuples(index=False)]
    described = pd.DataFrame(
        {
            "table": name,
            "row": [_joined(row, keys) for row in rows],
            "question": [_joined(row, [key for key in keys if key not in REPEATED]) for row in rows],
            "present": both["_merge"] == "both",
            "anew": [_made_of(name, row) <= again.recomputed for row in rows],
            "by": [again.differ_by(_made_of(name, row), row["model"]) for row in rows],
        }
    )
    numbers = [str(name) for name in published if name not in keys and not pd.api.types.is_bool_dtype(published[name])]
    frames = [
        described.assign(column=number, published=both[number], recomputed=both[f"{number} again"])
        for number in numbers
    ]
    aligned = pd.concat(frames, ignore_index=True)
    if again.changed:
        aligned.loc[(aligned["column"] == FAMILYWISE) & (aligned["by"] == SAME), "by"] = MIXED
    return aligned


def _keys(table: pd.DataFrame) -> list[str]:
    """The columns that name a row: words, and the numbers among KEYS."""
    return [
        column
        for column in map(str, table)
        if column in KEYS
        or not (pd.api.types.is_numeric_dtype(table[column]) or pd.api.types.is_bool_dtype(table[column]))
    ]


def _named(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A table with its keys as text, and a count of rows that have the same."""
    words = {key: [_text(value) for value in table[key]] for key in keys}
    table = table.assign(**words)
    return table.assign(count=table.groupby(keys).cumcount())


def _text(value: object) -> str:
    if value != value:  # NaN: the column does not apply
        return ""
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def _joined(row: dict[str, str], keys: list[str]) -> str:
    return " ".join(f"{key}={row[key]}" for key in keys if row[key])


def _made_of(table: str, row: dict[str, str]) -> set[str]:
    """The stages whose outputs a row is made of."""
    model = row["model"]
    if table == "training":
        return {f"base@{model}"}
    if table in variants.TABLES:
        return {f"variants@{model}-{row['site']}"}
    conditions = [row.get("condition", "dense")]
    if table == "ratios":
        percent = round(100 * float(row["sparsity"]))
        conditions = [f"wanda-{percent}", f"magnitude-{percent}"]
    return {f"metrics@{model}-{condition}" for condition in ("dense", *conditions)}
