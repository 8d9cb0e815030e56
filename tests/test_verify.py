"""Published numbers against recomputed ones: tolerances by hand, what counts as a difference, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import TOP
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_survival.config import load
from feature_survival.verify import claims
from feature_survival.verify.compare import MIXED, MODELS, SAME, SEEDS, Again, align
from feature_survival.verify.published import Entry, changed_inputs, digest, read_lock
from feature_survival.verify.recompute import choose, commands, unshift
from feature_survival.verify.tolerance import FACTORS, FAR, ROUNDING, judge, measure, read_spread, write_spread

CELLS = {f"metrics@{model}-{condition}" for model in "ab" for condition in ("dense", "wanda-50")}
SAES_ANEW = Again(CELLS, CELLS)
MODEL_ANEW = Again(CELLS | {"base@a", "base@b"}, CELLS | {"base@a", "base@b"})


def cells(*values: float, condition: str = "wanda-50") -> pd.DataFrame:
    """A table of one number, a row a model."""
    return pd.DataFrame({"model": list("ab")[: len(values)], "condition": condition, "sparsity": 0.5, "fvu": values})


def spread_of(between: str, value: float) -> pd.DataFrame:
    return pd.DataFrame(
        [{"between": between, "table": "cells", "column": "fvu", "question": "", "spread": value, "numbers": 9}]
    )


def judged(one: pd.DataFrame, other: pd.DataFrame, again: Again = SAES_ANEW, spread: float = 0.0) -> pd.DataFrame:
    between = MODELS if again is MODEL_ANEW else SEEDS
    return judge(align("cells", one, other, again), spread_of(between, spread))


def test_spread_is_the_root_mean_square_of_differences_and_three_of_it_are_the_tolerance() -> None:
    # sqrt((.03^2 + .04^2) / 2) = .0353553; three times that, .106066
    found = measure(align("cells", cells(1.0, 2.0), cells(1.03, 1.96), SAES_ANEW), SEEDS)
    (row,) = found.itertuples()
    assert (row.between, row.table, row.column, row.question, row.numbers) == (SEEDS, "cells", "fvu", "", 2)
    assert row.spread == pytest.approx(0.0353553, abs=1e-7)
    rows = judge(align("cells", cells(1.0, 2.0), cells(1.1, 2.11), SAES_ANEW), found)
    assert list(rows["tolerance"]) == pytest.approx([0.106066, 0.106066], abs=1e-6)
    assert list(rows["drift"]) == pytest.approx([0.942809, 1.037090], abs=1e-5)
    assert list(rows["real"]) == [False, True]


def test_a_question_that_moves_further_has_a_tolerance_of_its_own() -> None:
    calm, wild = cells(0.1, 0.2), cells(0.1, 0.2, condition="magnitude-50")
    # together sqrt((8 x .01^2 + 2 x .4^2) / 10) = .179; the wild ones .4, more than twice that
    one = pd.concat([*[calm] * 4, wild], ignore_index=True)
    other = one.assign(fvu=one["fvu"] + ([0.01] * 8 + [0.4] * 2))
    again = Again(CELLS | {"metrics@a-magnitude-50", "metrics@b-magnitude-50"}, CELLS)
    found = measure(align("cells", one, other, again), SEEDS).set_index("question")["spread"]
    assert found.to_dict() == pytest.approx({"": 0.17911, "condition=magnitude-50 sparsity=0.5": 0.4}, abs=1e-4)


def test_a_number_without_spread_may_move_by_rounding_alone() -> None:
    assert not judged(cells(100.0), cells(100.0 * (1 + 0.9 * ROUNDING)))["real"].any()
    assert judged(cells(100.0), cells(100.0 * (1 + 1.1 * ROUNDING)))["real"].all()
    assert not judged(cells(0.0), cells(0.0))["real"].any()
    assert judged(cells(0.0), cells(1e-9))["real"].all()


numbers = st.floats(-1e3, 1e3, allow_nan=False).map(lambda value: round(value, 6))


@settings(deadline=None, max_examples=15)
@given(st.lists(numbers, min_size=1, max_size=2), st.floats(0, 10), st.sampled_from([SAES_ANEW, MODEL_ANEW]))
def test_a_table_beside_itself_never_drifts(values: list[float], spread: float, again: Again) -> None:
    rows = judged(cells(*values), cells(*values), again, spread)
    assert len(rows) == len(values) and (rows["drift"] == 0).all() and not rows["real"].any()


@settings(deadline=None, max_examples=15)
@given(numbers, st.floats(0.001, 10), st.floats(1.001, 100), st.sampled_from([-1, 1]))
def test_a_change_beyond_the_tolerance_is_always_found_and_one_within_never(
    value: float, spread: float, times: float, sign: int
) -> None:
    tolerance = max(3 * spread, ROUNDING * abs(value))
    assert judged(cells(value), cells(value + sign * times * tolerance), SAES_ANEW, spread)["real"].all()
    assert not judged(cells(value), cells(value + sign * tolerance / times), SAES_ANEW, spread)["real"].any()


def real(drift: float, beyond: int, of: int, again: Again) -> int:
    """How many of a metric's numbers really differ, when some drift by so many tolerances."""
    tolerance = 0.1 * FACTORS[MODELS if again is MODEL_ANEW else SEEDS]
    one = pd.DataFrame({"model": "a", "condition": "dense", "tau": range(of), "fvu": 1.0})
    other = one.assign(fvu=[1 + tolerance * drift] * beyond + [1.0] * (of - beyond))
    return int(judged(one, other, again, 0.1)["real"].sum())


@pytest.mark.parametrize("again", [SAES_ANEW, MODEL_ANEW])
def test_one_number_in_twenty_may_lie_beyond_the_tolerance_but_none_far_out(again: Again) -> None:
    assert real(0.9, 40, 40, again) == 0
    assert real(2, 2, 40, again) == 0 and real(2, 3, 40, again) == 3
    assert real(2, 1, 19, again) == 1
    assert real(FAR - 0.1, 1, 40, again) == 0 and real(FAR + 0.1, 1, 40, again) == 1


def test_a_row_or_a_number_that_one_side_lacks_is_a_difference() -> None:
    assert list(judged(cells(0.1, 0.2), cells(0.1), spread=1.0)["real"]) == [False, True]
    assert list(judged(cells(0.1), cells(0.1, 0.2), spread=1.0)["real"]) == [False, True]
    assert judged(cells(0.1), cells(math.nan), spread=1.0)["real"].all()
    assert not judged(cells(0.1), cells(math.nan), MODEL_ANEW)["real"].any()  # another model may not tell it
    assert not judged(cells(math.nan, math.inf), cells(math.nan, math.inf), spread=1.0)["real"].any()


def test_rows_are_held_to_what_was_computed_again() -> None:
    one, other = cells(0.1, 0.2), cells(0.1, 0.3)
    by = [
        align("cells", one, other, again)["by"].tolist()
        for again in (
            Again(set(), set()),
            Again({"metrics@b-dense", "metrics@b-wanda-50"}, {"metrics@b-wanda-50"}),
            Again({"metrics@b-dense"}, {"metrics@b-dense"}),
            Again(CELLS | {"base@b"}, {"base@b", "metrics@b-dense"}),
        )
    ]
    assert by == [[SAME, SAME], [SAME, SEEDS], [SAME, MIXED], [SAME, MODELS]]
    assert judged(one, other, Again(set(), set()), spread=1.0)["real"].tolist() == [False, True]  # must be identical


def test_ratios_and_places_are_made_of_several_cells_and_of_none() -> None:
    ratio = pd.DataFrame({"model": ["a"], "sparsity": [0.5], "ratio": [1.0]})
    anew = {"metrics@a-dense", "metrics@a-wanda-50"}
    assert align("ratios", ratio, ratio, Again(anew, anew))["by"].tolist() == [MIXED]
    anew = anew | {"metrics@a-magnitude-50"}
    assert align("ratios", ratio, ratio, Again(anew, anew))["by"].tolist() == [SEEDS]
    place = pd.DataFrame({"model": ["a"], "site": ["mlp_out"], "left": [1.0]})
    assert align("latents", place, place, Again(anew, anew))["by"].tolist() == [SAME]
    anew = {"variants@a-mlp_out"}
    assert align("latents", place, place, Again(anew, anew))["by"].tolist() == [SEEDS]


def test_measured_spread_replaces_what_stood_there_of_its_kind(tmp_path: Path) -> None:
    for between, value in ((SEEDS, 1.0), (MODELS, 2.0), (SEEDS, 3.0)):
        write_spread(tmp_path, spread_of(between, value))
    assert read_spread(tmp_path).set_index("between")["spread"].to_dict() == {SEEDS: 3.0, MODELS: 2.0}


def test_the_spread_of_every_published_number_is_known() -> None:
    known = read_spread(TOP)
    for between in (SEEDS, MODELS):
        metrics = known[known["between"] == between].groupby("table")["column"].agg(set)
        for path in (TOP / "results").glob("*.csv"):
            if path.stem in ("environment", "spread") or (between, path.stem) == (SEEDS, "training"):
                continue
            table = pd.read_csv(path)
            asked = set(align(path.stem, table.head(1), table.head(1), SAES_ANEW)["column"])
            assert asked <= metrics.get(path.stem, set()), f"{between}: {path.stem}"


def test_shifted_seeds_are_named_as_published() -> None:
    found = unshift(
        pd.DataFrame({"init_seed": [10, 11], "seed": ["init10-data11", "init12-data10"], "fvu": [0.1, 0.2]})
    )
    assert found.to_dict("list") == {"init_seed": [0, 1], "seed": ["init0-data1", "init2-data0"], "fvu": [0.1, 0.2]}


def held(published: dict, recomputed: dict, tmp_path: Path, exact: bool = False) -> str:
    """The state of the one claim of a project, at least .5."""
    (tmp_path / "claims.yaml").write_text(
        "claims:\n  one:\n    claim: c\n    source: s\n    published: p\n    controls: {}\n"
        "    test: {table: cells, rows: fvu > 0, measure: fvu, summary: largest, at_least: 0.5}\n"
    )
    folders = [tmp_path, tmp_path / "scratch"]
    for folder, found in zip(folders, (published, recomputed), strict=True):
        (folder / "results").mkdir(parents=True, exist_ok=True)
        content = [{"name": "one", "controls": {}, "low": None, "high": None, "here": "", **found}]
        (folder / "results" / "claims.json").write_text(json.dumps(content))
    (one,) = claims.compare(*folders, spread_of(SEEDS, 0.01), exact)
    return one.state


HOLDS, FAILS = {"value": 0.52, "verdict": "holds"}, {"value": 0.46, "verdict": "does not hold"}


@pytest.mark.parametrize(
    ("other", "state"),
    [
        ({"value": 0.60, "verdict": "holds"}, claims.AGREES),
        (FAILS, claims.NEAR),  # .52 is within .03 of .5
        ({**FAILS, "value": 0.1}, claims.NEAR),
        ({"value": None, "verdict": "not testable at this scale"}, claims.DIFFERS),
    ],
)
def test_a_verdict_may_turn_only_near_its_bound(other: dict, state: str, tmp_path: Path) -> None:
    assert held(HOLDS, other, tmp_path) == state


def test_a_verdict_that_turns_far_from_its_bound_differs_unless_an_interval_holds_it(tmp_path: Path) -> None:
    far, low = {**HOLDS, "value": 0.7}, {**FAILS, "value": 0.2}
    assert held(far, low, tmp_path) == claims.DIFFERS
    assert held({**far, "low": 0.4, "high": 0.9}, low, tmp_path) == claims.NEAR


def test_where_nothing_was_made_anew_a_claim_must_be_the_same_to_the_digit(tmp_path: Path) -> None:
    assert held(HOLDS, HOLDS, tmp_path, exact=True) == claims.AGREES
    assert held(HOLDS, {**HOLDS, "value": 0.521}, tmp_path, exact=True) == claims.DIFFERS


def test_a_cell_needs_its_model_pruned_and_its_dense_cell_and_a_place_the_pruned_model() -> None:
    params = load(TOP / "params.yaml")
    chosen = choose(["mini-llama3-wanda-50,mini-gpt2-mlp_out"], params)
    assert commands(chosen) == [
        "prune mini-llama3",
        "prune mini-gpt2",
        *[f"{stage} mini-llama3 dense" for stage in ("cache", "sae", "metrics")],
        *[f"{stage} mini-llama3 wanda-50" for stage in ("cache", "sae", "metrics")],
        "variants mini-gpt2 mlp_out",
    ]
    assert choose([], params).everything


@pytest.fixture(scope="module")
def lock() -> dict[str, Entry]:
    """The repository's own."""
    return read_lock(TOP)


def test_the_lock_knows_the_published_results_by_their_hashes(lock: dict[str, Entry]) -> None:
    assert lock["summarize"].outs["results/cells.csv"] == digest(TOP / "results" / "cells.csv")
    assert digest(TOP / "results" / "nothing.csv") == ""


def test_a_changed_source_and_a_changed_setting_are_named(tmp_path: Path, lock: dict[str, Entry]) -> None:
    entry = lock["sae@mini-llama3-dense"]
    params = (TOP / "params.yaml").read_text().replace("\n  k: 16\n", "\n  k: 8\n")
    (tmp_path / "params.yaml").write_text(params)
    (source,) = [path for path in entry.deps if path.endswith("trainers/sparse.py")]
    (tmp_path / source).parent.mkdir(parents=True)
    (tmp_path / source).write_text("another\n")
    lines = changed_inputs(tmp_path, {"sae@mini-llama3-dense": entry}, ["sae@mini-llama3-dense"])
    assert lines[0] == f"{source} is another than then (sae@mini-llama3-dense)"
    assert len(lines) == 2 and lines[1].startswith("params.yaml: sae")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What git has: nothing pulled."""
    for name in ("params.yaml", "data.dvc", "claims.yaml"):
        shutil.copy(TOP / name, tmp_path)
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    shutil.copytree(TOP / "results", tmp_path / "results")
    return tmp_path


def test_what_cannot_be_verified_is_refused_in_one_line_before_anything_runs(checkout: Path, cli: Callable) -> None:
    def refused(*names: str) -> str:
        ended = cli(checkout, "verify", *names)
        assert ended.code == 2 and ended.err.count("\n") == 1 and ended.out == ""
        assert not (checkout / ".verify").exists()
        return ended.err

    assert "unknown name 'mini-llama3-wanda-5'; did you mean 'mini-llama3-wanda-50'?" in refused("mini-llama3-wanda-5")
    assert "dvc pull brings what is published" in refused("mini-llama3-wanda-50")
    (checkout / "dvc.lock").write_text("schema: '2.0'\n")
    assert "dvc.lock: not a dvc.lock" in refused()
    (checkout / "dvc.lock").unlink()
    assert "dvc.lock: no such file" in refused()
    (checkout / "results" / "spread.csv").unlink()
    assert "results/spread.csv: no such file" in refused()
