"""From metrics on disk to tables and figures: planted features, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TINY_STUDY, WriteParams

from feature_survival import artifacts, config, summarize, tables
from feature_survival.config import InputError
from feature_survival.figures import FIGURES, draw
from feature_survival.metrics.survival import OTHER_INIT, OTHER_ORDER, RANDOM, SAME_SEEDS

MODELS = ["tiny", "tall"]
FEATURES = 100


def planted(pairing: str, dense: str, other: str, survivors: int, alive: int = FEATURES) -> pd.DataFrame:
    """A pair of SAEs: the first `survivors` features are found again at cosine .75, the others at .5."""
    feature = np.arange(FEATURES)
    return pd.DataFrame(
        {
            "pairing": pairing,
            "dense_seed": dense,
            "compressed_seed": other,
            "feature": feature,
            "alive": feature < alive,
            "firing_rate": (feature + 1) / 1000,
            "mutual_cosine": np.where(feature < survivors, 0.75, 0.5),
        }
    )


def cell_features(model: str, condition: str) -> pd.DataFrame:
    if condition == "dense":
        return pd.concat(
            [
                planted(OTHER_ORDER, "init0-data0", "init0-data1", 80),
                planted(OTHER_INIT, "init0-data0", "init1-data1", 40),
                planted(RANDOM, "init0-data0", "random0", 0),
            ]
        )
    survivors = 60 if model == "tiny" else 90
    return pd.concat(
        [
            planted(SAME_SEEDS, "init0-data0", "init0-data0", survivors),
            planted(OTHER_ORDER, "init0-data1", "init0-data0", 50),
            planted(OTHER_INIT, "init1-data1", "init0-data0", 20),
            planted(OTHER_INIT, "init1-data1", "init2-data2", 40),
            planted(OTHER_INIT, "init2-data2", "init0-data0", 10, alive=50),
        ]
    )


SAE = {"init_seed": 0, "data_seed": 0, "fvu": 0.2, "l0": 8.0, "share_dead": 0.1, "ce_sae": 3.1, "ce_loss_score": 0.9}


@pytest.fixture
def study(tmp_path: Path, write_params: WriteParams) -> tuple[config.Params, Path]:
    changes: dict[str, Any] = {**TINY_STUDY, "models.tall": TINY_STUDY["models.tiny"], "study.models": MODELS}
    params = config.load(write_params(tmp_path, changes))
    for model in MODELS:
        for condition in params.study.conditions:
            folder = artifacts.Cell(tmp_path, model, condition).metrics
            folder.mkdir(parents=True)
            numbers = {
                "achieved_sparsity": 0.49 if condition != "dense" else 0.0,
                "perplexity": 40.0,
                "saes": [SAE, SAE],
            }
            (folder / "metrics.json").write_text(json.dumps(numbers))
            cell_features(model, condition).to_parquet(folder / "features.parquet")
        log = artifacts.training_log(tmp_path, model)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("step,tokens,train_loss,held_out_loss\n1,64,5.0,5.1\n")
    return params, tmp_path


@pytest.fixture
def results(study: tuple[config.Params, Path]) -> Path:
    summarize.run(*study)
    return study[1] / "results"


def test_planted_survival_is_read_back_for_every_pairing(results: Path) -> None:
    table = pd.read_csv(results / "survival.csv").set_index(["model", "condition", "pairing", "tau"])["survival"]
    assert table["tiny", "wanda-50", SAME_SEEDS, 0.7] == pytest.approx(0.6)
    assert table["tiny", "wanda-50", SAME_SEEDS, 0.8] == 0
    assert table["tall", "wanda-50", SAME_SEEDS, 0.6] == pytest.approx(0.9)
    assert table["tiny", "dense", OTHER_INIT, 0.7] == pytest.approx(0.4)
    assert table["tiny", "dense", RANDOM, 0.6] == 0


def test_a_dense_feature_counts_once_whatever_the_number_of_its_partners(results: Path) -> None:
    table = pd.read_csv(results / "survival.csv").set_index(["model", "condition", "pairing", "tau"])
    row = table.loc[("tiny", "wanda-50", OTHER_INIT, 0.7)]
    # init1-data1: mean of .2 and .4 over its partners; init2-data2: 10 of 50 alive; then the mean of both SAEs.
    assert row["survival"] == pytest.approx((0.3 + 0.2) / 2)
    assert (row["n_features"], row["n_saes"], row["n_pairs"]) == (150, 2, 3)


def test_fragility_follows_the_planted_firing_rates(results: Path) -> None:
    table = pd.read_csv(results / "fragility.csv")
    same = table[(table["model"] == "tiny") & (table["condition"] == "wanda-50") & (table["pairing"] == SAME_SEEDS)]
    assert same["survival"].tolist() == [1, 1, 1, 0, 0]  # the rarest sixty of a hundred survive
    tests = pd.read_csv(results / "fragility_tests.csv").set_index(["model", "condition", "pairing"])
    assert tests.loc[("tiny", "wanda-50", SAME_SEEDS), "gap"] == 1


def test_a_pruning_that_differs_from_the_default_is_a_series_of_its_own(
    study: tuple[config.Params, Path], write_params: WriteParams
) -> None:
    root = study[1]
    changed = {**TINY_STUDY, "models.tall": TINY_STUDY["models.tiny"], "study.models": MODELS}
    changed["conditions.wanda-50"] = {"method": "wanda", "sparsity": 0.5, "group": "matrix"}
    summarize.run(config.load(write_params(root, changed)), root)
    series = pd.read_csv(root / "results" / "cells.csv")["series"].unique()
    assert list(series) == ["dense", "magnitude", "wanda group=matrix"]


@pytest.mark.parametrize("name", ["metrics.json", "features.parquet"])
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


def test_a_dense_sae_without_alive_features_is_named(study: tuple[config.Params, Path]) -> None:
    params, root = study
    silent = planted(SAME_SEEDS, "init0-data0", "init0-data0", 10, alive=0)
    silent.to_parquet(artifacts.Cell(root, "tiny", "wanda-50").metrics / "features.parquet")
    with pytest.raises(InputError, match="tiny/wanda-50: no feature of the dense SAE init0-data0 is alive"):
        summarize.run(params, root)


def test_the_table_of_cells_shows_intervals_and_escapes_for_latex(results: Path, tmp_path: Path) -> None:
    tables.write(results, tmp_path)
    markdown = (tmp_path / "cells.md").read_text()
    row = next(line for line in markdown.splitlines() if "tiny" in line and "wanda-50" in line)
    assert "49.0%" in row and "0.600 [" in row and "40.00" in row
    latex = (tmp_path / "cells.tex").read_text()
    assert r"49.0\%" in latex and r"\caption" in latex


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_all_its_data_and_has_the_same_bytes_twice(name: str, results: Path, tmp_path: Path) -> None:
    files = draw(name, results, tmp_path)
    first = [file.read_bytes() for file in files]
    assert [file.suffix for file in files] == [".pdf", ".png"]
    assert [file.read_bytes() for file in draw(name, results, tmp_path)] == first


@pytest.mark.parametrize("name", FIGURES)
def test_no_panel_cuts_a_point_or_an_interval_off(name: str, results: Path) -> None:
    from importlib import import_module

    canvas = import_module(f"feature_survival.figures.{name}").figure(results)
    assert len(canvas.axes) == 3 * len(MODELS)
    for axis in canvas.axes:
        low, high = axis.get_ylim()
        for line in axis.get_lines():
            heights = np.asarray(line.get_ydata(), dtype=float)
            assert ((low <= heights) & (heights <= high)).all()
        for bars in axis.collections:
            heights = np.concatenate([path.vertices[:, 1] for path in bars.get_paths()])
            assert ((low <= heights) & (heights <= high)).all()


def test_an_unknown_figure_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown name 'survivl'; did you mean 'survival'"):
        draw("survivl", tmp_path, tmp_path)


def test_a_figure_without_its_column_says_which(results: Path, tmp_path: Path) -> None:
    table = pd.read_csv(results / "survival.csv").drop(columns="low")
    table.to_csv(results / "survival.csv", index=False)
    with pytest.raises(InputError, match="column 'low' is missing"):
        draw("survival", results, tmp_path)
    assert not (tmp_path / "survival.pdf").exists()
