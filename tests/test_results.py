"""From metrics on disk to tables, figures and claims: planted features, read back."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import TINY_STUDY, WriteParams
from planted import plant

from feature_survival import artifacts, config, summarize, tables
from feature_survival.figures import FIGURES, draw
from feature_survival.metrics.survival import (
    FIXED,
    OTHER_INIT,
    OTHER_ORDER,
    RANDOM,
    SAME_SEEDS,
    survival_by_feature,
)
from feature_survival.schema import InputError
from feature_survival.summarize.measured import series_of

MODELS = ["tiny", "tall"]
FEATURES = 100
TALL_TOO = {
    "models.tall": TINY_STUDY["models.tiny"],
    "study.bases": MODELS,
    "study.models": MODELS,
    "variants.models": MODELS,
}


def planted(pairing: str, dense: str, other: str, survivors: int, alive: int = FEATURES) -> pd.DataFrame:
    """A pair of SAEs: the first `survivors` features are found again at cosine .75, the others at .5."""
    feature = np.arange(FEATURES)
    cosine = np.where(feature < survivors, 0.75, 0.5)
    return pd.DataFrame(
        {
            "pairing": pairing,
            "dense_seed": dense,
            "compressed_seed": other,
            "feature": feature,
            "alive": feature < alive,
            "mutual_cosine": cosine,
            "matched_cosine": np.where(feature < alive, cosine, np.nan),
            "matched_encoder_cosine": np.where(feature < alive, cosine - 0.1, np.nan),
        }
    )


def cell_matches(model: str, condition: str) -> pd.DataFrame:
    if condition == "dense":
        return pd.concat(
            [
                planted(OTHER_ORDER, "init0-data0", "init0-data1", 80),
                planted(OTHER_INIT, "init0-data0", "init1-data1", 40),
                planted(RANDOM, "init0-data0", "random0", 0),
            ]
        )
    survivors = (60 if model == "tiny" else 90) - (20 if condition == "magnitude-50" else 0)
    return pd.concat(
        [
            planted(SAME_SEEDS, "init0-data0", "init0-data0", survivors),
            planted(OTHER_ORDER, "init0-data1", "init0-data0", 50),
            planted(OTHER_INIT, "init0-data0", "init1-data1", 10),
            planted(OTHER_INIT, "init1-data1", "init0-data0", 20),
            planted(OTHER_INIT, "init1-data1", "init2-data2", 40),
            planted(OTHER_INIT, "init2-data2", "init0-data0", 10, alive=50),
        ]
    )


def cell_features(matches: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Rarest first; the rarest moved least; the first three quarters are kept; effects grow with the feature's number.

    The feature's number is also its effect, but for sign: of two neighbours one has it negative.
    """
    features = matches[["dense_seed", "feature", "alive"]].drop_duplicates().reset_index(drop=True)
    number = features["feature"]
    features = features.assign(
        firing_rate=(number + 1) / 1000,
        mean_activation=1.0,
        max_activation=2.0 + number % 7,
        encoder_decoder_cosine=0.9 - (number % 5) / 100,
        displacement=(number + 1) / 200,
        correlation=np.where(number < 75, 0.95, 0.2),
    )
    survival = survival_by_feature(matches[matches["alive"]], [0.6, 0.7, 0.8])
    features = features.merge(survival, how="left", on=["dense_seed", "feature"])
    if condition == "dense":
        sign = np.where(number % 2 == 0, 1, -1)
        first = features["dense_seed"] == "init0-data0"
        for column in ("ce_zero", "ce_mean", "kl_zero", "kl_mean"):
            features[column] = np.where(first, sign * (1 + number) / 1000, np.nan)
    return features


SAE = {
    "init_seed": 0,
    "data_seed": 0,
    "fvu": 0.2,
    "l0": 8.0,
    "share_dead": 0.1,
    "ce_sae": 3.1,
    "ce_loss_score": 0.9,
    "kl": 0.2,
}


@pytest.fixture(scope="module")
def planted_study(tmp_path_factory: pytest.TempPathFactory, write_params: WriteParams) -> tuple[config.Params, Path]:
    """Planted metrics of every cell, and their summary in `results/`."""
    tmp_path = tmp_path_factory.mktemp("study")
    changes: dict[str, Any] = {**TINY_STUDY, **TALL_TOO}
    params = config.load(write_params(tmp_path, changes))
    for model in MODELS:
        for condition in params.study.conditions:
            folder = artifacts.Cell(tmp_path, model, condition).metrics
            folder.mkdir(parents=True)
            dense = condition == "dense"
            numbers = {
                "achieved_sparsity": 0.0 if dense else 0.49,
                "bits_per_weight": 16.0 if dense else 9.16,
                "cross_entropy": 3.5,
                "perplexity": 40.0 if dense else 50.0,
                "tokens": 1000,
                "parameters": 12345,
                "site_width": 32,
                "saes": [SAE, {**SAE, "init_seed": 1, "fvu": 0.22}],
                "transfer": [
                    {**SAE, "init_seed": seed, "fvu": 0.2 if dense else fvu, "dense_fvu": 0.2, "jaccard": 0.5}
                    for seed, fvu in enumerate((0.24, 0.28))
                ],
            }
            (folder / "metrics.json").write_text(json.dumps(numbers))
            matches = cell_matches(model, condition)
            cell_features(matches, condition).to_parquet(folder / "features.parquet")
            matches.drop(columns="alive").to_parquet(folder / "matches.parquet")
        log = artifacts.training_log(tmp_path, model)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("step,tokens,train_loss,held_out_loss\n1,64,5.0,5.1\n")
    # A dense cell knows every dense SAE, those of the pairings with compressed cells too.
    for model in MODELS:
        dense_folder = artifacts.Cell(tmp_path, model, "dense").metrics
        others = pd.read_parquet(artifacts.Cell(tmp_path, model, "wanda-50").metrics / "features.parquet")
        own = pd.read_parquet(dense_folder / "features.parquet")
        further = others[~others["dense_seed"].isin(own["dense_seed"])][[*own.columns[:9]]]
        pd.concat([own, further], ignore_index=True).to_parquet(dense_folder / "features.parquet")
    plant(params, tmp_path)
    summarize.run(params, tmp_path)
    return params, tmp_path


@pytest.fixture
def study(planted_study: tuple[config.Params, Path], tmp_path: Path) -> tuple[config.Params, Path]:
    """A copy of the planted metrics, without results."""
    shutil.copytree(planted_study[1], tmp_path / "study", ignore=shutil.ignore_patterns("results"))
    return planted_study[0], tmp_path / "study"


@pytest.fixture
def results(planted_study: tuple[config.Params, Path], tmp_path: Path) -> Path:
    """A copy of the results."""
    return shutil.copytree(planted_study[1] / "results", tmp_path / "results")


def row(results: Path, table: str, **where: Any) -> pd.Series:
    """The one row of a table with these values."""
    found = pd.read_csv(results / f"{table}.csv")
    for column, value in where.items():
        found = found[found[column] == value]
    assert len(found) == 1, found
    return found.iloc[0]


WANDA = {"model": "tiny", "condition": "wanda-50"}


@pytest.mark.parametrize(
    ("where", "survival"),
    [
        ({**WANDA, "pairing": SAME_SEEDS, "tau": 0.7}, 0.6),
        ({**WANDA, "pairing": SAME_SEEDS, "tau": 0.8}, 0),
        ({"model": "tall", "condition": "wanda-50", "pairing": SAME_SEEDS, "tau": 0.6}, 0.9),
        ({"model": "tiny", "condition": "dense", "pairing": OTHER_INIT, "tau": 0.7}, 0.4),
        ({"model": "tiny", "condition": "dense", "pairing": RANDOM, "tau": 0.6}, 0),
    ],
)
def test_planted_survival_is_read_back(results: Path, where: dict[str, Any], survival: float) -> None:
    assert row(results, "survival", **where)["survival"] == pytest.approx(survival)


def test_a_dense_feature_counts_once_whatever_the_number_of_its_partners(results: Path) -> None:
    found = row(results, "survival", **WANDA, pairing=OTHER_INIT, tau=0.7)
    # init0: 10 of 100; init1: mean of .2 and .4 over its partners; init2: 10 of 50 alive; then the mean of the three.
    assert found["survival"] == pytest.approx((0.1 + 0.3 + 0.2) / 3)
    assert (found["n_features"], found["n_saes"], found["n_pairs"]) == (250, 3, 4)


def test_stability_reports_every_kind_of_match(results: Path) -> None:
    def value(match: str, tau: float) -> float:
        return row(results, "stability", model="tiny", pairing=OTHER_ORDER, match=match, tau=tau)["value"]

    assert value("mutual nearest", 0.7) == value("one to one", 0.7) == pytest.approx(0.8)
    assert value("decoder and encoder", 0.6) == pytest.approx(0.8)
    assert value("decoder and encoder", 0.7) == 0  # encoders agree at .65 only
    table = pd.read_csv(results / "stability.csv")
    mean = table[(table["model"] == "tiny") & (table["pairing"] == OTHER_ORDER) & (table["match"] == "mean cosine")]
    assert mean["value"].item() == pytest.approx(0.8 * 0.75 + 0.2 * 0.5)


def test_the_ratio_of_methods_is_that_of_planted_survivors(results: Path) -> None:
    found = row(results, "ratios", model="tiny", pairing=SAME_SEEDS)
    assert found["ratio"] == pytest.approx(60 / 40)
    assert found["low"] < 1.5 < found["high"]
    assert row(results, "ratios", model="tiny", pairing=FIXED)["ratio"] == 1


def test_transfer_is_viable_below_a_quarter_more_unexplained(results: Path) -> None:
    old = row(results, "transfer", **WANDA, sae="dense model's")
    assert (old["fvu_ratio"], old["fvu_ratio_low"], old["fvu_ratio_high"]) == pytest.approx((1.3, 1.2, 1.4))
    assert not old["viable"]
    assert old["kept"] == pytest.approx((0.75 + 0.75 + 0.75 + 1.0) / 4)  # the fourth SAE has its first fifty alive
    new = row(results, "transfer", **WANDA, sae="retrained")
    assert new["fvu_ratio"] == pytest.approx(1.05)
    assert new["viable"]


def test_fragility_follows_the_planted_firing_rates(results: Path) -> None:
    table = pd.read_csv(results / "fragility.csv")
    same = table[(table["model"] == "tiny") & (table["condition"] == "wanda-50") & (table["pairing"] == SAME_SEEDS)]
    assert same["survival"].tolist() == [1, 1, 1, 0, 0]  # the rarest sixty of a hundred survive
    tests = row(results, "fragility_tests", **WANDA, pairing=SAME_SEEDS)
    assert tests["gap"] == 1
    assert row(results, "fragility_tests", **WANDA, pairing=FIXED)["rho_features"] < 0


def test_the_planted_init_confound_is_found(results: Path) -> None:
    found = row(results, "displacement_tests", **WANDA, pairing=SAME_SEEDS)
    # Same init: the least moved fifth survives, the most moved does not; other init: half of the least moved fifth.
    assert found["confound"] == pytest.approx(1 - 0.5)
    assert found["low"] > 0
    moved = pd.read_csv(results / "displacement.csv")
    assert moved.loc[moved["pairing"] == SAME_SEEDS, "displacement"].iloc[0] == pytest.approx(np.mean([1, 20]) / 200)


def test_causal_effects_compare_as_many_survivors_as_casualties(results: Path) -> None:
    where = {**WANDA, "ablation": "zero", "outcome": "ce"}
    found = row(results, "causal", **where, pairing=OTHER_INIT)
    # Of init0's features, ten in the rarest fifth survive and ten do not; no other fifth holds survivors.
    assert (found["n_ablated"], found["n_survivors"], found["n_casualties"]) == (100, 10, 10)
    assert found["low"] <= found["delta"] <= found["high"]
    assert found["p_holm"] >= found["p"]
    nothing = row(results, "causal", **where, pairing=SAME_SEEDS)  # every fifth survives whole or not at all
    assert nothing["n_survivors"] == 0
    assert np.isnan(nothing["delta"])


def test_a_pruning_that_differs_from_the_default_is_a_series_of_its_own(
    study: tuple[config.Params, Path], write_params: WriteParams
) -> None:
    root = study[1]
    changed = {**TINY_STUDY, **TALL_TOO}
    changed["conditions.wanda-50"] = {"method": "wanda", "sparsity": 0.5, "group": "matrix"}
    summarize.run(config.load(write_params(root, changed)), root)
    series = pd.read_csv(root / "results" / "cells.csv")["series"].unique()
    assert list(series) == ["dense", "magnitude", "wanda group=matrix"]


def test_tables_describe_a_model_by_its_own_budget(
    study: tuple[config.Params, Path], write_params: WriteParams
) -> None:
    params, root = study
    changes: dict[str, Any] = {**TINY_STUDY, **TALL_TOO}
    changes["models.tiny.budget"] = {"sae.expansion": 3, "activations.sae_windows": 77}
    summarize.run(config.load(write_params(root, changes)), root)
    models, name = pd.read_csv(root / "results" / "models.csv").set_index("model"), "tiny"
    assert models.loc[name, "sae_tokens"] == 77 * (params.window - 1) * params.sae.epochs
    assert models.loc[name, "sae_width"] == 3 * models.loc[name, "site_width"]


def test_with_another_default_group_no_series_is_named_after_it(tmp_path: Path, write_params: WriteParams) -> None:
    params = config.load(write_params(tmp_path, {"prune.group": "matrix"}))
    named = {name: series_of(params, name) for name in ("dense", "wanda-50", "rtn-4", "svd-50", "wanda-2of4")}
    assert named == {
        "dense": "dense",
        "wanda-50": "wanda",
        "rtn-4": "rtn",
        "svd-50": "svd",
        "wanda-2of4": "wanda group=2:4",
    }


@pytest.mark.parametrize("name", ["metrics.json", "features.parquet", "matches.parquet"])
def test_a_cell_with_a_missing_or_broken_file_is_named(study: tuple[config.Params, Path], name: str) -> None:
    params, root = study
    path = artifacts.Cell(root, "tall", "wanda-50").metrics / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=f"tall/wanda-50/{name}"):
        summarize.run(params, root)
    path.unlink()
    with pytest.raises(InputError, match=f"tall/wanda-50/{name}"):
        summarize.run(params, root)
    assert not (root / "results").exists()


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_written_in_markdown_and_latex(name: str, results: Path, tmp_path: Path) -> None:
    tables.write(results, tmp_path)
    markdown = (tmp_path / f"{name}.md").read_text().splitlines()
    body = [line for line in markdown if line.startswith("| t")]
    assert {line.split("|")[1].strip() for line in body} == set(MODELS)
    assert "nan" not in "".join(body)
    latex = (tmp_path / f"{name}.tex").read_text()
    assert r"\caption" in latex
    assert "%" not in latex.replace(r"\%", "")


def test_tables_show_the_planted_numbers_with_their_intervals(results: Path, tmp_path: Path) -> None:
    tables.write(results, tmp_path)

    def line(name: str, *words: str) -> str:
        lines = (tmp_path / f"{name}.md").read_text().splitlines()
        return next(line for line in lines if all(word in line for word in words))

    assert "49.0%" in line("cells", "tiny", "wanda-50")
    assert "1.25" in line("cells", "tiny", "wanda-50")
    assert "0.600 [" in line("transfer", "tiny", "wanda-50")
    assert "0.260 / 0.210" in line("transfer", "tiny", "wanda-50")
    assert "n = 5" in line("fragility", "tiny", "wanda-50", "same seeds")
    macros = (tmp_path / "numbers.tex").read_text()
    assert r"\newcommand{\SurvivalTinyWandaFiveZeroSameSeeds}{0.60}" in macros


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_all_its_data_and_has_the_same_bytes_twice(name: str, results: Path, tmp_path: Path) -> None:
    files = draw(name, results, tmp_path)
    first = [file.read_bytes() for file in files]
    assert [file.suffix for file in files] == [".pdf", ".png"]
    assert [file.read_bytes() for file in draw(name, results, tmp_path)] == first


@pytest.mark.parametrize("name", FIGURES)
def test_no_panel_cuts_a_point_or_an_interval_off(name: str, results: Path) -> None:
    canvas = import_module(f"feature_survival.figures.{name}").figure(results)
    assert len(canvas.axes) % len(MODELS) == 0
    for axis in canvas.axes:
        low, high = axis.get_ylim()
        for line in axis.get_lines():
            heights = np.asarray(line.get_ydata(), dtype=float)
            heights = heights[np.isfinite(heights)]
            assert ((low <= heights) & (heights <= high)).all()
        for bars in axis.collections:
            for path in bars.get_paths():
                heights = path.vertices[:, 1][np.isfinite(path.vertices[:, 1])]
                assert ((low <= heights) & (heights <= high)).all()
    plt.close(canvas)


def test_an_unknown_figure_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown name 'survivl'; did you mean 'survival'"):
        draw("survivl", tmp_path, tmp_path)


def test_a_figure_without_its_column_says_which(results: Path, tmp_path: Path) -> None:
    table = pd.read_csv(results / "survival.csv").drop(columns="low")
    table.to_csv(results / "survival.csv", index=False)
    with pytest.raises(InputError, match="column 'low' is missing"):
        draw("survival", results, tmp_path)
    assert not (tmp_path / "survival.pdf").exists()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_no_rows_says_so(name: str, results: Path, tmp_path: Path) -> None:
    (results / f"{name}.csv").write_text("\n")
    with pytest.raises(InputError, match="has no rows"):
        draw(name, results, tmp_path)
