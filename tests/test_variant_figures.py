"""Figures of the second study show the planted numbers, all of them, each in its panel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import planted
import pytest
from conftest import WriteParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feature_survival import config
from feature_survival.figures import FIGURES, draw
from feature_survival.figures.style import PlainLog, by_family
from feature_survival.metrics.survival import FIXED, OTHER_INIT, OTHER_ORDER, SAME_SEEDS
from feature_survival.schema import InputError
from feature_survival.summarize.variants import TABLES, tables

matplotlib.use("Agg")
SECOND = [name for name in FIGURES if name in TABLES]  # a figure is named after its table
MODELS, SITES = ["mini-gpt2", "mini-llama3"], ["resid_post", "mlp_out"]
CHANGES: dict[str, Any] = {
    "variants.models": MODELS,
    "variants.sites": SITES,
    "metrics.bootstrap_samples": 20,
}
PANELS = {  # rows, columns
    "variants_by_site": (5, len(SITES)),
    "sae_pruning_sweep": (len(MODELS), len(SITES)),
    "compressors": (5, len(MODELS)),
    "matched": (4, 2),
    "latents": (3, len(MODELS)),
}


@pytest.fixture(autouse=True, scope="module")
def _no_figure_stays() -> Iterator[None]:
    yield
    unchanged.cache_clear()
    plt.close("all")


@pytest.fixture(scope="module")
def planted_tables(tmp_path_factory: pytest.TempPathFactory, write_params: WriteParams) -> dict[str, pd.DataFrame]:
    root = tmp_path_factory.mktemp("planted")
    params = config.load(write_params(root, CHANGES))
    planted.plant(params, root)
    return tables(params, root)


def write(found: dict[str, pd.DataFrame], folder: Path) -> Path:
    for name, table in found.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    return folder


@pytest.fixture(scope="module")
def results(planted_tables: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted results that no test changes."""
    return write(planted_tables, tmp_path_factory.mktemp("results"))


@pytest.fixture
def own(planted_tables: dict[str, pd.DataFrame], tmp_path: Path) -> Path:
    """Planted results of one test."""
    return write(planted_tables, tmp_path)


def figure(name: str, results: Path) -> Figure:
    return import_module(f"feature_survival.figures.{name}").figure(results)


@cache
def unchanged(name: str, results: Path) -> Figure:
    """A figure that many tests look at and none changes."""
    return figure(name, results)


def panel(canvas: Figure, name: str, row: int, column: int) -> Axes:
    return np.reshape(np.array(canvas.axes, dtype=object), PANELS[name])[row, column]


def heights(axis: Axes, label: str) -> np.ndarray:
    """What stands under a label of the legend: the values of a line, or of one with intervals."""
    handles, labels = axis.get_legend_handles_labels()
    handle = handles[labels.index(label)]
    line = handle[0] if isinstance(handle, tuple) else handle
    return np.asarray(line.get_ydata(), dtype=float)


def rows(results: Path, name: str, **where: Any) -> pd.DataFrame:
    table = pd.read_csv(results / f"{name}.csv")
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table)
    return table


def texts(axis: Axes) -> str:
    return " | ".join(text.get_text() for text in axis.texts)


@pytest.mark.parametrize("name", SECOND)
def test_a_figure_has_all_panels_each_named_and_one_legend(name: str, results: Path) -> None:
    canvas = unchanged(name, results)
    high, wide = PANELS[name]
    assert len(canvas.axes) == high * wide
    assert all(panel(canvas, name, row, 0).get_ylabel() for row in range(high))
    for column in range(wide):
        assert panel(canvas, name, 0, column).get_title()
        assert panel(canvas, name, high - 1, column).get_xlabel()
    (legend,) = canvas.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names))
    for axis in canvas.axes:
        assert set(axis.get_legend_handles_labels()[1]) <= set(names)


@pytest.mark.parametrize("name", SECOND)
def test_no_panel_cuts_a_point_or_an_interval_off(name: str, results: Path) -> None:
    for axis in unchanged(name, results).axes:
        low, high = axis.get_ylim()
        drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axis.get_lines()]
        drawn += [path.vertices[:, 1] for bars in axis.collections for path in bars.get_paths()]
        for values in drawn:
            values = values[np.isfinite(values)]
            assert ((low <= values) & (values <= high)).all()


@pytest.mark.parametrize("name", SECOND)
def test_one_model_at_one_site_with_one_level_is_drawn_too(
    name: str, tmp_path: Path, write_params: WriteParams
) -> None:
    changes = {
        "variants.models": MODELS[:1],
        "variants.sites": SITES[:1],
        "variants.levels": [0.5],
        "variants.further_conditions": [],
        "variants.compressors": ["wanda-60", "rtn-4"],
        "variants.redundancy": {},
        "metrics.bootstrap_samples": 20,
    }
    params = config.load(write_params(tmp_path, changes))
    planted.plant(params, tmp_path)
    canvas = figure(name, write(tables(params, tmp_path), tmp_path))
    canvas.draw_without_rendering()
    assert len(canvas.axes) == (8 if name == "matched" else 1 if name == "sae_pruning_sweep" else PANELS[name][0])


@pytest.mark.parametrize(("name", "high"), [("compressors", 3), ("matched", 3)])
def test_a_pairing_that_one_seed_cannot_make_has_no_panels(name: str, high: int, own: Path) -> None:
    table = pd.read_csv(own / f"{name}.csv")
    column = "pairing" if name == "compressors" else "quantity"
    table[~table[column].isin([OTHER_ORDER, OTHER_INIT])].to_csv(own / f"{name}.csv", index=False)
    assert len(figure(name, own).axes) == high * len(MODELS)


@pytest.mark.parametrize(
    ("row", "column"),
    enumerate(["fvu", "ce_loss_score", "absorption", "disentanglement", "probing_5"]),
)
@pytest.mark.parametrize(("score", "label"), [("wanda", "by Wanda score"), ("magnitude", "by magnitude")])
def test_variants_by_site_shows_each_score_of_the_main_condition(
    results: Path, row: int, column: str, score: str, label: str
) -> None:
    where = {"model": "mini-llama3", "site": "mlp_out", "condition": "wanda-50", "sae": "standard"}
    of_model = rows(results, "variants_by_site", **where)
    canvas = unchanged("variants_by_site", results)
    axis = panel(canvas, "variants_by_site", row, 1)
    expected = of_model[of_model["score"] == score].sort_values("level")[column]
    assert heights(axis, f"mini-llama3, {label}").tolist() == expected.tolist()
    whole = of_model[of_model["score"].isna()][column].tolist()  # pretrained, then retrained
    assert any(np.asarray(line.get_ydata()).tolist() == whole for line in axis.get_lines())
    assert [text.get_text() for text in panel(canvas, "variants_by_site", 4, 1).get_xticklabels()] == [
        "pretrained",
        "retrained",
        "pruned-25",
        "pruned-50",
        "pruned-75",
        "pruned-90",
    ]


def test_variants_by_site_says_what_each_score_was_measured_over_and_marks_chance(results: Path) -> None:
    canvas = unchanged("variants_by_site", results)
    notes = [texts(panel(canvas, "variants_by_site", row, 0)) for row in range(5)]
    assert notes == [
        "L0 15.9-16.0; n = 1000 tokens",
        "n = 500 tokens",
        "n = 6 letters",
        "n = 4 attributes",
        "n = 11 tasks",
    ]
    assert panel(canvas, "variants_by_site", 0, 0).get_yscale() == "log"
    for row, axis in enumerate(panel(canvas, "variants_by_site", row, 0) for row in range(5)):
        assert ("0.5: chance, or no effect" in axis.get_legend_handles_labels()[1]) == (row > 2)


def test_a_score_that_could_not_be_measured_leaves_its_panel_empty(own: Path) -> None:
    table = pd.read_csv(own / "variants_by_site.csv")
    table["absorption"] = np.nan
    table["n_letters"] = table["n_letters"].where(table["n_letters"].isna(), 0)
    table.to_csv(own / "variants_by_site.csv", index=False)
    canvas = figure("variants_by_site", own)
    assert texts(panel(canvas, "variants_by_site", 2, 0)) == "n = 0 letters"
    assert np.isfinite(heights(panel(canvas, "variants_by_site", 3, 0), "mini-gpt2, by magnitude")).all()


def test_the_sweep_starts_at_the_pretrained_sae_and_shows_every_level(results: Path) -> None:
    canvas = unchanged("sae_pruning_sweep", results)
    for number, model in enumerate(MODELS):
        axis = panel(canvas, "sae_pruning_sweep", number, 1)
        of_place = rows(results, "sae_pruning_sweep", model=model, site="mlp_out")
        start = of_place[of_place["kind"] == "pretrained"]["fvu_ratio"].tolist()
        for part, name in (
            ("both", "encoder and decoder"),
            ("encoder", "encoder only"),
            ("decoder", "decoder only"),
        ):
            for score, label in (("wanda", "Wanda score"), ("magnitude", "magnitude")):
                pruned = of_place[(of_place["part"] == part) & (of_place["score"] == score)].sort_values("level")
                assert heights(axis, f"{name}, {label}").tolist() == start + pruned["fvu_ratio"].tolist()
        assert axis.get_yscale() == "log"
        assert texts(axis) == "n = 1000 tokens"
    # The range over seeds .15, .16, .17 beside a retrained FVU of .16: 1 - .125 to 1 + .125.
    first = panel(canvas, "sae_pruning_sweep", 0, 0)
    (band,) = first.patches
    assert (band.get_y(), band.get_height()) == pytest.approx((0.875, 0.25))
    assert heights(first, "SAE retrained on the compressed model").tolist() == [1, 1]
    assert heights(first, "1.25 times (fixed in advance)").tolist() == [1.25, 1.25]


@pytest.mark.parametrize(("row", "pairing"), enumerate([SAME_SEEDS, OTHER_ORDER, OTHER_INIT, FIXED]))
def test_every_compressor_stands_in_every_panel_and_wandas_levels_are_joined(
    results: Path, row: int, pairing: str
) -> None:
    table = rows(results, "compressors", model="mini-llama3", site="resid_post", pairing=pairing)
    axis = panel(unchanged("compressors", results), "compressors", row, 1)
    shown = set(axis.get_legend_handles_labels()[1]) - {"ceiling: two dense SAEs"}
    ladder = [f"wanda-{percent}" for percent in (20, 30, 50, 60, 70, 85)]
    assert shown == set(table["condition"]) - {"dense", *ladder} | {"wanda, levels joined"}
    values = table.set_index("condition")["survival"]
    assert heights(axis, "wanda, levels joined").tolist() == values[ladder].tolist()
    for name in shown - {"wanda, levels joined"}:
        assert heights(axis, name).tolist() == [values[name]]
    if row in (1, 2):  # dense SAEs among themselves
        assert heights(axis, "ceiling: two dense SAEs").tolist() == [values["dense"]] * 2
    assert texts(axis) == "n = 200 features"


def test_compressors_shows_the_fvu_ratio_and_clips_what_costs_nothing(results: Path) -> None:
    canvas = unchanged("compressors", results)
    axis = panel(canvas, "compressors", 4, 0)
    where = {"model": "mini-gpt2", "site": "resid_post", "pairing": FIXED}
    found = rows(results, "compressors", **where, condition="svd-50")
    assert heights(axis, "svd-50").tolist() == found["fvu_ratio"].tolist()
    handles, labels = axis.get_legend_handles_labels()
    assert handles[labels.index("svd-50")].get_xdata().tolist() == (found["perplexity_ratio"] - 1).tolist()
    assert handles[labels.index("rtn-8")].get_xdata().tolist() == [1e-3]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert axis.xaxis.get_major_formatter()(1e-3) == "at most\n0.001"
    assert "[log scale]" in axis.get_xlabel()
    assert "[log scale]" in axis.get_ylabel()
    looks = [(line.get_color(), line.get_marker()) for line in handles[:-1]]
    assert len(looks) == len(set(looks))


def test_conditions_are_of_the_family_their_method_and_pattern_say() -> None:
    methods = [
        ("random-50", "random", "row"),
        ("svd-50", "svd", np.nan),  # an empty cell of a CSV
        ("rtn-4", "rtn", np.nan),
        ("wanda-2of4", "wanda", "2:4"),
        ("wanda-50", "wanda", "row"),
        ("dense", "dense", np.nan),
    ]
    assert by_family(pd.DataFrame(methods, columns=["condition", "method", "group"])) == {
        "wanda-50": "unstructured",
        "wanda-2of4": "N:M pattern",
        "rtn-4": "quantized",
        "svd-50": "low rank",
        "random-50": "random weights",
    }


@pytest.mark.parametrize(("column", "by"), enumerate(["perplexity", "bits a weight"]))
@pytest.mark.parametrize(("row", "quantity"), enumerate([SAME_SEEDS, OTHER_INIT, FIXED, "FVU ratio"]))
def test_matched_shows_each_difference_and_sets_aside_what_has_none(
    results: Path, row: int, quantity: str, column: int, by: str
) -> None:
    canvas = unchanged("matched", results)
    axis = panel(canvas, "matched", row, column)
    names = [text.get_text() for text in panel(canvas, "matched", row, 0).get_yticklabels()]
    (strip,) = axis.patches
    for model in MODELS:
        found = rows(results, "matched", model=model, matched_by=by, quantity=quantity)
        expected = found.set_index("condition")["difference"]
        handles, labels = axis.get_legend_handles_labels()
        x, y = handles[labels.index(model)].get_data()
        shown = {names[round(height)]: value for value, height in zip(x, y, strict=True) if np.isfinite(value)}
        assert shown == expected.dropna().to_dict()
        assert all(value < strip.get_x() for value in shown.values())
    aside = [line for line in axis.get_lines() if len(line.get_xdata()) and line.get_xdata()[0] > strip.get_x()]
    beyond = {names[round(height)] for line in aside for height in line.get_ydata()}
    expected = set()
    if by == "perplexity":
        expected = {"random-50"} | ({"rtn-8"} if quantity == SAME_SEEDS else set())  # two dense SAEs are not that pair
    assert beyond == expected


@pytest.mark.parametrize(("row", "predictor"), enumerate(["firing rate", "encoder norm", "nearest decoder row"]))
@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_latents_show_what_is_left_at_half_the_weights(results: Path, row: int, predictor: str, part: str) -> None:
    axis = panel(unchanged("latents", results), "latents", row, 1)
    for score, label in (("wanda", "Wanda score"), ("magnitude", "magnitude")):
        where = {"model": "mini-llama3", "site": "resid_post", "level": 0.5, "predictor": predictor}
        found = rows(results, "latents", **where, score=score, part=part)
        assert heights(axis, f"{part}, {label}, 95% interval").tolist() == found["left"].tolist()
    assert heights(axis, "left if pruned at random (50%)").tolist() == [0.5, 0.5]
    assert texts(axis) == "n = 400 latents, 50% of weights pruned"


def test_a_figure_may_be_named_with_hyphens(results: Path, tmp_path: Path) -> None:
    files = draw("sae-pruning-sweep", results, tmp_path / "out")
    assert [file.name for file in files] == ["sae_pruning_sweep.pdf", "sae_pruning_sweep.png"]
    assert all(file.stat().st_size for file in files)


@pytest.mark.parametrize("name", SECOND)
def test_a_missing_column_is_named_in_one_line(name: str, own: Path) -> None:
    columns = import_module(f"feature_survival.figures.{name}").COLUMNS
    table = pd.read_csv(own / f"{name}.csv")
    for column in columns:
        table.drop(columns=column).to_csv(own / f"{name}.csv", index=False)
        with pytest.raises(InputError, match=f"^[^\n]*{name}.csv: column '{column}' is missing[^\n]*$"):
            figure(name, own)


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("header", [True, False])
def test_a_table_without_rows_is_refused_in_one_line(name: str, header: bool, own: Path) -> None:
    table = pd.read_csv(own / f"{name}.csv")
    (own / f"{name}.csv").write_text(",".join(table.columns) + "\n" if header else "\n")
    with pytest.raises(InputError, match=r"^[^\n]*has no rows[^\n]*$"):
        figure(name, own)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 3.1, [1, 1.5, 2, 2.5, 3]),
        (0.03, 3, [0.05, 0.1, 0.2, 0.5, 1, 2]),
    ],
)
def test_a_logarithmic_axis_has_plain_ticks_within_its_limits(low: float, high: float, ticks: list[float]) -> None:
    assert PlainLog().tick_values(low, high) == pytest.approx(ticks)
