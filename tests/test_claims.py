"""Published claims held against tables: verdicts by hand, and errors that name claim, table and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TOP
from ruamel.yaml import YAML

from feature_survival import claims
from feature_survival.claims import FAILS, HOLDS, UNTESTABLE
from feature_survival.schema import InputError

CELLS = pd.DataFrame(
    {
        "model": ["a", "a", "b", "b"],
        "condition": ["dense", "wanda-50", "dense", "wanda-50"],
        "survival": [1.0, 0.4, 1.0, 0.2],
        "low": [1.0, 0.3, 1.0, 0.1],
        "high": [1.0, 0.5, 1.0, 0.3],
    }
)
SHARE = {"table": "cells", "rows": "condition != 'dense'", "measure": "survival > 0.3", "summary": "share"}
LARGEST = {"table": "cells", "rows": "condition != 'dense'", "measure": "survival", "summary": "largest"}


def claim(test: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"claim": "it holds", "source": "A", "published": "0.5", "test": test, "controls": {}, **more}


def judge(root: Path, **content: dict[str, Any]) -> dict[str, Any]:
    """Write cells and claims, run the stage, read the verdicts."""
    (root / "results").mkdir(exist_ok=True)
    CELLS.to_csv(root / "results" / "cells.csv", index=False)
    YAML(typ="safe").dump({"claims": content}, root / "claims.yaml")
    claims.run(root)
    return {entry["name"]: entry for entry in json.loads((root / "results" / "claims.json").read_text())}


@pytest.mark.parametrize(
    ("test", "value", "verdict"),
    [
        ({**SHARE, "at_least": 0.5}, 0.5, HOLDS),
        ({**SHARE, "at_least": 0.6}, 0.5, FAILS),
        ({**SHARE, "at_most": 0.5}, 0.5, HOLDS),
        ({**LARGEST, "at_most": 0.3}, 0.4, FAILS),
        ({**LARGEST, "summary": "smallest", "at_most": 0.3}, 0.2, HOLDS),
        ({**LARGEST, "rows": "model == 'c'", "at_most": 0.3}, None, UNTESTABLE),
    ],
)
def test_a_verdict_is_the_summary_against_its_bound(
    tmp_path: Path, test: dict[str, Any], value: float | None, verdict: str
) -> None:
    found = judge(tmp_path, it=claim(test))["it"]
    assert (found["value"], found["verdict"]) == (value, verdict)


def test_a_share_has_an_exact_binomial_interval(tmp_path: Path) -> None:
    found = judge(tmp_path, it=claim({**SHARE, "at_least": 0.5}))["it"]
    assert (found["n"], found["here"]) == (2, "1 of 2")
    assert (found["low"], found["high"]) == pytest.approx((1 - 0.975**0.5, 0.975**0.5))  # by hand, 1 of 2


def test_an_extreme_has_the_interval_of_its_own_row(tmp_path: Path) -> None:
    found = judge(tmp_path, it=claim({**LARGEST, "interval": ["low", "high"], "at_least": 0.1}))["it"]
    assert (found["value"], found["low"], found["high"]) == (0.4, 0.3, 0.5)
    assert found["here"] == "0.4 (a wanda-50; largest of 2)"


def test_a_claim_whose_precondition_fails_is_not_testable_but_its_number_is_shown(tmp_path: Path) -> None:
    never = {**LARGEST, "at_least": 0.9}
    found = judge(tmp_path, it=claim({**LARGEST, "at_least": 0.1}, testable=never))["it"]
    assert (found["value"], found["verdict"]) == (0.4, UNTESTABLE)


def test_a_row_that_lacks_a_number_of_the_measure_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    CELLS.assign(survival=[1, 0.4, 1, None]).to_csv(tmp_path / "results" / "gaps.csv", index=False)
    found = judge(tmp_path, it=claim({**SHARE, "table": "gaps", "at_least": 0.9}))["it"]
    assert (found["here"], found["verdict"]) == ("1 of 1", HOLDS)


def test_controls_have_verdicts_of_their_own(tmp_path: Path) -> None:
    control = {**LARGEST, "at_most": 0.3}
    found = judge(tmp_path, it=claim({**LARGEST, "at_least": 0.1}, controls={"the other way": control}))["it"]
    assert found["verdict"] == HOLDS
    assert found["controls"]["the other way"]["verdict"] == FAILS
    printed = (tmp_path / "paper_figures" / "claims.md").read_text()
    assert "the other way: does not hold (0.4 (a wanda-50; largest of 2))" in printed


def test_a_misspelt_key_of_a_precondition_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"claims\.it\.testable\.tabel: unknown key 'tabel'; did you mean 'table'"):
        judge(tmp_path, it=claim({**LARGEST, "at_least": 0}, testable={**LARGEST, "tabel": "x", "at_least": 0}))


def test_a_table_without_rows_makes_a_claim_untestable(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "ratios.csv").write_text("\n")
    found = judge(tmp_path, it=claim({**LARGEST, "table": "ratios", "at_least": 0.1}))["it"]
    assert found["verdict"] == UNTESTABLE


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (
            {**LARGEST, "measure": "survivl", "at_least": 0},
            r"it: test: .*cells\.csv has no column 'survivl'; found: model",
        ),
        ({**LARGEST, "rows": "modell == 'a'", "at_least": 0}, "no column 'modell'"),
        ({**LARGEST, "interval": ["low", "hi"], "at_least": 0}, "no column 'hi'"),
        ({**LARGEST, "table": "cels", "at_least": 0}, "no table 'cels'; found: cells"),
        ({**LARGEST, "rows": "model == ('a'", "at_least": 0}, "not an expression"),
        ({**LARGEST, "rows": "model is 'a'", "at_least": 0}, "not an expression"),
        ({**LARGEST, "rows": "survival + 1", "at_least": 0}, "not true or false"),
        ({**LARGEST, "measure": "1", "at_least": 0}, "no value a row"),
        ({**SHARE, "measure": "survival", "at_least": 0}, "not true or false"),
        ({**LARGEST, "measure": "model", "at_least": 0}, "'model' is not a number; the largest of the rows"),
        ({**LARGEST, "measure": "survival > 0", "at_least": 0}, "is not a number"),
        ({**SHARE}, "exactly one of at_least and at_most"),
        ({**SHARE, "at_least": 0, "at_most": 1}, "exactly one of at_least and at_most"),
        ({**LARGEST, "at_leest": 0.5}, "unknown key 'at_leest'; did you mean 'at_least'"),
        ({**LARGEST, "summary": "mean", "at_least": 0.5}, "'share', 'largest' or 'smallest', found 'mean'"),
    ],
)
def test_a_faulty_claim_is_named_in_one_line_and_nothing_is_written(
    tmp_path: Path, test: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        judge(tmp_path, it=claim(test))
    assert "\n" not in str(error.value)
    assert "claims.yaml" in str(error.value)
    assert not (tmp_path / "results" / "claims.json").exists()


def test_the_shipped_claims_can_be_judged_on_the_shipped_results(tmp_path: Path) -> None:
    (tmp_path / "claims.yaml").write_text((TOP / "claims.yaml").read_text())
    (tmp_path / "results").symlink_to(TOP / "results")
    content = YAML(typ="safe").load(tmp_path / "claims.yaml")["claims"]
    for name, entry in content.items():
        for which, test in {"test": entry["test"], **entry["controls"]}.items():
            found = claims.evaluate(claims.Test(**test), tmp_path, f"{name}: {which}")
            assert found.n > 0, f"{name}: {which}"


def test_what_a_verdict_rests_on_is_named_with_the_stages_that_compute_it(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    spread = "models,cells,survival,,0.02,2\nmodels,cells,survival,model=a,0.05,2\nSAE seeds,cells,survival,,0.01,2\n"
    (tmp_path / "results" / "spread.csv").write_text(f"between,table,column,question,spread,numbers\n{spread}")
    judge(
        tmp_path,
        b=claim({**SHARE, "rows": "model == 'b' and low < 1", "at_least": 0.5}),
        a=claim({**LARGEST, "at_most": 0.3}),
    )
    every, one = claims.evidence(tmp_path)
    assert one == {
        "claim": "b",
        "file": "results/cells.csv",
        "rows": "`model == 'b' and low < 1`",
        "of them": "share `survival > 0.3`",
        "expected": "0 of 1",
        "holds if": "at least 0.5",
        "spread": "survival 0.01 (SAE seeds); survival 0.02 (models)",
        "computed by": "`metrics@b-wanda-50`",
    }
    assert (every["computed by"], every["holds if"]) == ("`metrics@a-wanda-50` and 1 more", "at most 0.3")
    assert (tmp_path / "paper_figures" / "evidence.md").read_text().count("\n| ") == 3
