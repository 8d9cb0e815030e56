"""Every claim's verdict, published and recomputed: the same, near its bound, or really another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from feature_survival.artifacts import read_json
from feature_survival.claims import Claim, Test, load
from feature_survival.verify.tolerance import FACTORS

AGREES, NEAR, DIFFERS = "same", "near its bound", "differs"


class Held(NamedTuple):
    """A claim's test, or one of its controls, in both runs."""

    name: str  # of the claim, or claim: control
    published: dict[str, Any]
    recomputed: dict[str, Any]
    bound: float
    state: str


def compare(root: Path, scratch: Path, spread: pd.DataFrame, exact: bool) -> list[Held]:
    """Each test of results/claims.json held against the recomputed one.

    exact: nothing was made anew, so that every number must be the same. A claim that one side lacks differs.
    """
    claims = load(root / "claims.yaml")
    published, recomputed = (
        {found["name"]: found for found in read_json(folder / "results" / "claims.json")} for folder in (root, scratch)
    )
    held = []
    for name in {**published, **recomputed}:
        there, here = published.get(name, {}), recomputed.get(name, {})
        tests = {name: (there, here)}
        for control in {**there.get("controls", {}), **here.get("controls", {})}:
            tests[f"{name}: {control}"] = (
                there.get("controls", {}).get(control, {}),
                here.get("controls", {}).get(control, {}),
            )
        for label, (one, other) in tests.items():
            test = _test(claims.get(name), label.removeprefix(name).removeprefix(": "))
            bound = _bound(test) if test else float("nan")
            held.append(Held(label, one, other, bound, _state(one, other, test, bound, spread, exact)))
    return held


def _test(claim: Claim | None, control: str) -> Test | None:
    if claim is None:
        return None
    return claim.controls.get(control) if control else claim.test


def _bound(test: Test) -> float:
    return float(test.at_least if test.at_least is not None else test.at_most or 0.0)


def _state(
    one: dict[str, Any], other: dict[str, Any], test: Test | None, bound: float, spread: pd.DataFrame, exact: bool
) -> str:
    if exact:
        return AGREES if one == other else DIFFERS
    if one and other and one["verdict"] == other["verdict"]:
        return AGREES
    if not one or not other or test is None or one["value"] is None or other["value"] is None:
        return DIFFERS
    for found in (one, other):
        if found["low"] is not None and found["high"] is not None and found["low"] <= bound <= found["high"]:
            return NEAR
    nearest = min(abs(found["value"] - bound) for found in (one, other))
    return NEAR if nearest <= _tolerance(test, spread) else DIFFERS


def _tolerance(test: Test, spread: pd.DataFrame) -> float:
    """That of the column a test measures; none where it measures a share, or more than a column."""
    found = spread[(spread["table"] == test.table) & (spread["column"] == test.measure)]
    return (
        0.0
        if found.empty or test.summary == "share"
        else float((found["between"].map(FACTORS) * found["spread"]).max())
    )
