"""What verify says: metrics that drifted, claims, why; on a terminal's width, or 160 columns."""

from __future__ import annotations

import math
import sys

import pandas as pd
from rich.console import Console
from rich.table import Table

from feature_survival.verify.claims import DIFFERS, NEAR, Held
from feature_survival.verify.compare import MODELS, SAME, SEEDS
from feature_survival.verify.tolerance import FACTORS, FAR, RARE, ROUNDING

SHOWN = 20  # differences that are spelt out


def console() -> Console:
    """Where tables go."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=not sys.stdout.isatty())


def metrics(judged: pd.DataFrame) -> Table:
    """A row a metric that drifted; how many did not is in the caption."""
    table = Table(
        "metric",
        "numbers",
        "identical",
        "largest drift",
        "of tolerance",
        "tolerance there",
        "derived from",
        "verdict",
        title="Recomputed numbers that are not the published ones to the last digit",
        title_justify="left",
    )
    drifted = judged[judged["drift"] > 0]
    for (name, column, by), rows in drifted.groupby(["table", "column", "by"], sort=False):
        of_metric = (judged["table"] == name) & (judged["column"] == column) & (judged["by"] == by)
        worst = rows.iloc[int(rows["drift"].argmax())]
        derived = (
            f"{FACTORS[str(by)]:g} x {worst['spread']:.3g} between {by}" if worst["spread"] else f"{ROUNDING:g} of it"
        )
        table.add_row(
            f"{name}.{column}",
            str(of_metric.sum()),
            str(of_metric.sum() - len(rows)),
            f"{abs(worst['published'] - worst['recomputed']):.3g}",
            _drift(worst["drift"]),
            f"{worst['tolerance']:.3g}",
            "must be identical" if by == SAME else derived,
            "DIFFERS" if rows["real"].any() else "within",
        )
    table.caption = (
        f"Tolerance: {FACTORS[SEEDS]:g} times the root mean square by which runs with SAEs of other seeds differ, "
        f"{FACTORS[MODELS]:g} times that of runs with other models (results/spread.csv), "
        f"at least {ROUNDING:g} of the number; what was not made anew must be identical. {RARE:.0%} of a metric's "
        f"numbers may lie beyond it, up to {FAR:g} times."
    )
    return table


def claims(held: list[Held]) -> Table:
    """A row a test whose numbers changed."""
    table = Table("claim", "published", "recomputed", "bound", "verdict", title="Claims", title_justify="left")
    for one in held:
        if one.published != one.recomputed:
            table.add_row(one.name, _found(one.published), _found(one.recomputed), f"{one.bound:g}", one.state)
    return table


def _found(found: dict[str, object]) -> str:
    return f"{found['verdict']} ({found['here']})" if found else "-"


def _drift(drift: float) -> str:
    return "one side lacks it" if math.isinf(drift) else f"{drift:.2g}"


def differences(judged: pd.DataFrame, held: list[Held]) -> list[str]:
    """A line each real difference, the first SHOWN of them and how many more."""
    found = [
        f"results/{row.table}.csv: {row.row}: {row.column}: published {row.published:g}, recomputed "
        f"{row.recomputed:g}, tolerance {row.tolerance:.3g}"
        for row in judged[judged["real"]].sort_values("drift", ascending=False, kind="stable").itertuples()
    ]
    found += [
        f"results/claims.json: {one.name}: published {_found(one.published)}, recomputed {_found(one.recomputed)}"
        for one in held
        if one.state == DIFFERS
    ]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return found[:SHOWN] + more


def summary(judged: pd.DataFrame, held: list[Held], what: str) -> str:
    """The last line where nothing really differs."""
    anew = judged[judged["anew"]]
    metrics = anew[["table", "column"]].drop_duplicates()
    largest = judged["drift"].max()
    near = sum(one.state == NEAR for one in held)
    drift = f"largest drift {largest:.2g} of its tolerance" if largest else "all identical"
    verdicts = f"{len(held) - near} of {len(held)} verdicts the same" + (f", {near} near their bounds" if near else "")
    return (
        f"verified: {len(anew)} numbers of {len(metrics)} metrics in {what} computed again, "
        f"{len(judged) - len(anew)} gathered again: {drift}; {verdicts}"
    )
