"""Stage `summarize`: all cells' metrics as tidy CSVs in `results/`, which git tracks; figures, tables and claims read
nothing else. One file a question, one entry of QUESTIONS.

In every table of features a dense feature counts once: its survival is the share of the SAEs it is paired with in which
it is found again. Intervals are 95%, and resample dense SAEs, then features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from feature_survival.artifacts import Cell, atomic_file, read_csv, training_log
from feature_survival.config import Params
from feature_survival.progress import progress
from feature_survival.schema import InputError
from feature_survival.stats import holm
from feature_survival.summarize import causal, displacement, fragility, grid, stability, survival, transfer, variants
from feature_survival.summarize.measured import Measured, Row


class Question(NamedTuple):
    """What is asked of every cell."""

    rows: Callable[[Measured], Iterable[tuple[str, Row]]]  # each with the name of its table
    tables: dict[str, str]  # by name, what a row is


QUESTIONS = [
    Question(grid.rows, {"models": "one row a model", "cells": "one row a cell", "saes": "one row an SAE"}),
    Question(stability.rows, {"stability": "RQ1: one row a model, pairing, kind of match and tau"}),
    Question(survival.rows, {"survival": "RQ2: one row a cell, pairing and tau"}),
    Question(transfer.rows, {"transfer": "RQ3: one row a cell and kind of SAE"}),
    Question(
        fragility.rows,
        {
            "fragility": "RQ4: one row a cell, pairing and quintile of firing rate",
            "fragility_tests": "RQ4: one row a cell and pairing",
            "predictors": "RQ4: one row a cell, pairing and predictor",
        },
    ),
    Question(
        displacement.rows,
        {
            "displacement": "one row a cell, pairing and quintile of displacement from initialisation",
            "displacement_tests": "one row a cell and pairing",
        },
    ),
    Question(causal.rows, {"causal": "RQ5: one row a cell, pairing, ablation and outcome"}),
]
TABLES = {
    **{name: row for question in QUESTIONS for name, row in question.tables.items()},
    "ratios": "RQ2: one row a model, sparsity and pairing",
    "training": "losses of the base models",
    **variants.TABLES,
}


def run(params: Params, root: Path) -> None:
    """Write all tables. A cell of the grid whose metrics are absent is an error that names it."""
    cells = [Cell(root, model, condition) for model in params.study.models for condition in params.study.conditions]
    absent = [str(cell) for cell in cells if not cell.metrics.exists()]
    if absent:
        raise InputError(
            f"results: {len(absent)} of {len(cells)} cells have no metrics: {', '.join(absent)}; run dvc repro"
        )
    own = {model: params.for_model(model) for model in params.study.models}
    measured = [Measured.read(own[cell.model], cell) for cell in cells]
    rows: dict[str, list[Row]] = {name: [] for question in QUESTIONS for name in question.tables}
    for cell in progress(measured, "summarize", len(measured), "cell"):
        for question in QUESTIONS:
            for name, row in question.rows(cell):
                rows[name].append(row)
    rows["ratios"] = list(survival.ratios(measured))
    tables = {name: pd.DataFrame(of_table) for name, of_table in rows.items()}
    tables["training"] = pd.concat(
        [read_csv(training_log(root, model)).assign(model=model) for model in params.study.bases]
    )
    tables |= variants.tables(params, root)
    if len(tables["causal"]):
        for _, family in tables["causal"].groupby(causal.FAMILY):
            tables["causal"].loc[family.index, "p_holm"] = holm(family["p"].to_numpy())
    for name, table in tables.items():
        with atomic_file(root / "results" / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
