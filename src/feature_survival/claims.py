"""Stage `claims`: every published claim of claims.yaml held against `results/`, with its controls; what it rests on.

A claim is a test on the rows of one table. The tool has no wish: what fails here is reported as failing, and what this
grid cannot show as not testable.
"""

from __future__ import annotations

import math
import re
import tokenize
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field, model_validator

from feature_survival.artifacts import atomic_file, read_csv, read_json, write_json
from feature_survival.schema import InputError, Section, read_yaml
from feature_survival.stats import binomial
from feature_survival.tables import write_table

HOLDS, FAILS, UNTESTABLE = "holds", "does not hold", "not testable at this scale"


class Test(Section):
    """One number from one table of `results/`, and the bound it must keep."""

    table: str  # results/<table>.csv
    rows: str  # which rows count: a pandas query
    measure: str  # a pandas expression over columns; for `share` one that is true or false
    summary: Literal["share", "largest", "smallest"]  # of the measure over the rows
    interval: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None  # columns, of the extreme row
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Test:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("exactly one of at_least and at_most is needed")
        if self.summary == "share" and self.interval:
            raise ValueError("interval: a share has its own, from the number of rows")
        return self


class Claim(Section):
    """One published claim."""

    claim: str
    source: str
    published: str
    test: Test
    testable: Test | None = None  # must hold for the claim to be tested at all
    controls: dict[str, Test]  # the same question without what may have produced the answer


class Claims(Section):
    """All of claims.yaml, by name."""

    claims: dict[str, Claim]


class Outcome(NamedTuple):
    """What a test found."""

    value: float | None  # None where no row counts
    low: float | None  # 95%
    high: float | None
    n: int  # rows
    verdict: str
    here: str  # for print


def load(path: Path) -> dict[str, Claim]:
    """Read and check claims.yaml; InputError names the key, what was found and what is allowed."""
    return read_yaml(path, Claims).claims


def run(root: Path) -> None:
    """Write `results/claims.json` and the tables `paper_figures/{claims,evidence}.{md,tex}`."""
    path = root / "claims.yaml"
    judged = [{"name": name, **_judge(claim, root, f"{path}: {name}")} for name, claim in load(path).items()]
    with atomic_file(root / "results" / "claims.json") as file:
        write_json(file, judged)
    caption = (
        "Published claims, and what this grid says. Tests and controls are spelt out in claims.yaml. Shares are of "
        "cells, with exact binomial 95% intervals; cells share models and SAEs, so the intervals are too narrow. A "
        "control asks the same without the suspected cause."
    )
    write_table("claims", pd.DataFrame(printed(root)), caption, root / "paper_figures")
    how = (
        "What each verdict rests on: the rows of a file, what is taken of them, the number expected, the bound it is "
        "held against, how far other seeds, of SAEs or of models, move the columns asked (root mean square, "
        "results/spread.csv; `make verify` allows a multiple of it, which it states), and the stages that compute it: "
        "`make verify CELLS=mini-llama3-wanda-50` runs those of a cell or site again. `make tables` judges all again."
    )
    write_table("evidence", pd.DataFrame(evidence(root)), how, root / "paper_figures")


def evidence(root: Path) -> list[dict[str, str]]:
    """What each verdict of `results/claims.json` rests on, for print: one row a claim, by its name in claims.yaml."""
    path, rows = root / "claims.yaml", []
    judged = {found["name"]: found for found in read_json(root / "results" / "claims.json")}
    spread = root / "results" / "spread.csv"
    measured = read_csv(spread, ["between", "table", "column", "question", "spread"]) if spread.exists() else None
    for name, claim in load(path).items():
        test = claim.test
        file = root / "results" / f"{test.table}.csv"
        table = read_csv(file)
        bound = f"at least {test.at_least:g}" if test.at_least is not None else f"at most {test.at_most:g}"
        rows.append(
            {
                "claim": name,
                "file": f"results/{test.table}.csv",
                "rows": f"`{test.rows}`",
                "of them": f"{test.summary} `{test.measure}`",
                "expected": judged[name]["here"],
                "holds if": bound,
                "spread": "-" if measured is None else _spread(test, table, measured),
                "computed by": _stages(test, table, f"{path}: {name}", file),
            }
        )
    return rows


def _spread(test: Test, table: pd.DataFrame, measured: pd.DataFrame) -> str:
    """How far other seeds move each column of its table that a test asks, as measured; nothing where it was not."""
    of_test = measured[(measured["table"] == test.table) & measured["question"].isna()].set_index("column")
    found = [
        f"{column} {of_column['spread']:.2g} ({of_column['between']})"
        for column in _asked(test, table)
        for _, of_column in of_test.loc[of_test.index == column].sort_values("between").iterrows()
    ]
    return "; ".join(found) or "-"


def _stages(test: Test, table: pd.DataFrame, where: str, path: Path) -> str:
    """The stages behind a test's rows of its table, and how many."""
    rows = table[_expression(table, test.rows, where, path)] if len(table) else table
    if rows.empty:
        return "-"
    stage, cell = ("variants", "site") if "site" in rows else ("metrics", "condition")
    if cell not in rows:  # of a model, or of a model's cells
        return f"`{stage}` of {', '.join(rows['model'].unique())}"
    names = sorted(set(rows["model"] + "-" + rows[cell]))
    return f"`{stage}@{names[0]}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def printed(root: Path) -> list[dict[str, str]]:
    """The verdicts of `results/claims.json`, for print: one row a claim."""
    return [_row(claim) for claim in read_json(root / "results" / "claims.json")]


def _judge(claim: Claim, root: Path, where: str) -> dict[str, object]:
    """A claim with its outcome and its controls', as plain data."""
    found = evaluate(claim.test, root, f"{where}: test")
    verdict = found.verdict
    if claim.testable and evaluate(claim.testable, root, f"{where}: testable").verdict != HOLDS:
        verdict = UNTESTABLE
    controls = {
        name: evaluate(test, root, f"{where}: controls.{name}")._asdict() for name, test in claim.controls.items()
    }
    described = claim.model_dump(include={"claim", "source", "published"})
    return {**described, **found._asdict(), "verdict": verdict, "controls": controls}


def evaluate(test: Test, root: Path, where: str) -> Outcome:
    """Run a test on its table. InputError names a table that is missing, or a column that a test asks for in vain."""
    path = root / "results" / f"{test.table}.csv"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.csv")))
        raise InputError(f"{where}: no table {test.table!r}; found: {known}")
    table = read_csv(path)
    if table.empty:
        return Outcome(None, None, None, 0, UNTESTABLE, "no such cells")
    wanted = _expression(table, test.rows, where, path)
    measure = _expression(table, test.measure, where, path)
    for column in test.interval or []:
        _expression(table, f"`{column}`", where, path)
    share = test.summary == "share"
    for text, values in [(test.rows, wanted), *([(test.measure, measure)] if share else [])]:
        if values.dtype != bool:
            raise InputError(f"{where}: {text!r} is not true or false; a comparison is needed")
    if not share and (measure.dtype == bool or not pd.api.types.is_numeric_dtype(measure)):
        raise InputError(f"{where}: {test.measure!r} is not a number; the {test.summary} of the rows needs one")
    # A row that lacks a number the measure asks for is no row; compared, it would count as false.
    measure = measure[wanted & table[_asked(test, table)].notna().all(axis=1)]
    n = len(measure)
    if not n:
        return Outcome(None, None, None, 0, UNTESTABLE, "no such cells")
    if share:
        low: float | None
        high: float | None
        value, low, high = binomial(int(measure.sum()), n)
        here = f"{int(measure.sum())} of {n}"
    else:
        position = measure.argmax() if test.summary == "largest" else measure.argmin()
        value, row = float(measure.iloc[position]), table.loc[measure.index].iloc[position].to_dict()
        low, high = (_finite(row[column]) for column in test.interval) if test.interval else (None, None)
        key = "condition" if "condition" in row else "sparsity"
        names = [str(row[name]) for name in ("model", "site", "variant") if name in row]
        here = f"{value:.3g} ({' '.join(names)} {row.get(key, 'dense')}; {test.summary} of {n})"
    holds = value >= test.at_least if test.at_least is not None else value <= (test.at_most or 0.0)
    return Outcome(_finite(value), low, high, n, HOLDS if holds else FAILS, here)


def _asked(test: Test, table: pd.DataFrame) -> list[str]:
    """The columns that a measure is of."""
    return [column for column in table.columns if re.search(rf"\b{re.escape(column)}\b", test.measure)]


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None


def _expression(table: pd.DataFrame, text: str, where: str, path: Path) -> pd.Series:
    """A pandas expression over a table's columns, one value a row."""
    try:
        found = table.eval(text, engine="python")
    except pd.errors.UndefinedVariableError as error:
        name = str(error).split("'")[1]
        raise InputError(f"{where}: {path} has no column {name!r}; found: {', '.join(table.columns)}") from None
    except (
        tokenize.TokenError,
        SyntaxError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        NotImplementedError,
    ) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{where}: {text!r} is not an expression over the columns of {path} ({message})") from None
    if not isinstance(found, pd.Series):
        raise InputError(f"{where}: {text!r} is not an expression over the columns of {path} (no value a row)")
    return found


def _row(claim: dict[str, Any]) -> dict[str, str]:
    low, high = claim["low"], claim["high"]
    return {
        "claim": f"{claim['claim']} ({claim['source']})",
        "published": claim["published"],
        "here": claim["here"],
        "95% interval": "-" if low is None or high is None else f"[{low:.2f}, {high:.2f}]",
        "verdict": claim["verdict"],
        "control": "; ".join(
            f"{name}: {found['verdict']} ({found['here']})" for name, found in claim["controls"].items()
        ),
    }
