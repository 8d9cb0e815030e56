"""Tables of the second study, from planted files of its stage: values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import planted
import pytest
from conftest import WriteParams

from feature_survival import config
from feature_survival.metrics import BOTH, PRETRAINED, PRUNED, RETRAINED, STANDARD
from feature_survival.metrics.survival import FIXED, OTHER_INIT, SAME_SEEDS
from feature_survival.schema import InputError
from feature_survival.summarize.variants import TABLES, tables

MODEL, SITES = "mini-llama3", ["resid_post", "mlp_out"]
CHANGES: dict[str, Any] = {
    "variants.models": [MODEL],
    "variants.sites": SITES,
    "variants.further_conditions": [],
    "variants.compressors": ["wanda-20", "wanda-70", "wanda-2of4", "magnitude-50", "rtn-4", "rtn-8"],
    "variants.levels": [0.25, 0.5],
    "variants.redundancy": {"narrow": {"expansion": 2}},
    "metrics.bootstrap_samples": 50,
}
Found = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory, write_params: WriteParams) -> config.Params:
    return config.load(write_params(tmp_path_factory.mktemp("params"), CHANGES))


@pytest.fixture(scope="module")
def found(params: config.Params, tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("planted")
    planted.plant(params, root)
    return tables(params, root)


def rows(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def row(table: pd.DataFrame, **where: Any) -> dict[str, Any]:
    (only,) = rows(table, **where).to_dict("records")
    return only


def test_every_table_is_made_and_none_is_empty(found: Found) -> None:
    assert list(found) == list(TABLES)
    assert all(len(table) for table in found.values())


@pytest.mark.parametrize("site", SITES)
def test_fvu_is_held_against_the_sae_retrained_on_the_same_model(found: Found, site: str) -> None:
    where = {"site": site, "condition": "wanda-50", "sae": STANDARD}
    table = found["variants_by_site"]
    assert row(table, **where, kind=RETRAINED)["fvu_ratio"] == 1
    assert row(table, **where, kind=PRETRAINED)["fvu_ratio"] == pytest.approx(1.25)
    pruned = row(table, **where, variant="pruned-50", score="magnitude")
    assert pruned["fvu_ratio"] == pytest.approx(1.25 * (1 + 2 * 0.5**2))
    assert pruned["fvu_gap"] == pytest.approx(0.01)


def test_the_ce_loss_score_falls_short_of_the_retrained_one_by_its_difference(found: Found) -> None:
    where = {"site": "mlp_out", "condition": "wanda-50", "sae": STANDARD}
    pretrained = row(found["variants_by_site"], **where, kind=PRETRAINED)
    # Planted: 1 - fvu / 4, with fvu = 1.5 * .20 and 1.5 * .16.
    assert pretrained["ce_loss_score_short"] == pytest.approx((1 - 0.24 / 4) - (1 - 0.30 / 4))
    assert row(found["variants_by_site"], **where, kind=RETRAINED)["ce_loss_score_short"] == 0


def test_the_range_over_seeds_is_that_of_the_dense_models_standard_saes(found: Found) -> None:
    table = found["variants_by_site"]
    assert rows(table, site="resid_post")["fvu_seed_range"].unique() == pytest.approx([0.02])  # .15, .16, .17
    assert rows(table, site="mlp_out")["fvu_seed_range"].unique() == pytest.approx([0.03])
    assert rows(table, condition="dense", kind=PRETRAINED)["fvu_ratio"].isna().all()  # nothing is retrained there


def test_the_sweep_holds_both_parts_and_each_alone_on_the_main_condition(found: Found) -> None:
    table = found["sae_pruning_sweep"]
    assert set(table["condition"]) == {"wanda-50"}
    assert set(table["sae"]) == {STANDARD}
    by_kind = rows(table, site="resid_post")["kind"].value_counts()
    assert by_kind.to_dict() == {PRUNED: 2 * 3 * 2, PRETRAINED: 1, RETRAINED: 1}
    encoder = row(table, site="resid_post", part="encoder", score="wanda", level=0.5)
    assert encoder["fvu_ratio"] == pytest.approx(1.25 * (1 + 0.6 * 0.5**2))
    assert set(found["variants_by_site"]["part"]) == {"", BOTH}


def test_survival_is_a_share_with_its_exact_binomial_interval(params: config.Params, tmp_path: Path) -> None:
    planted.plant(params, tmp_path)
    table = planted.compressors_table(params, MODEL, "resid_post")
    at = table["condition"] == "rtn-4"
    table.loc[at, [SAME_SEEDS, f"{SAME_SEEDS} of"]] = 0, 10
    table.loc[at, [FIXED, f"{FIXED} of"]] = 10, 10
    table.loc[at, [OTHER_INIT, f"{OTHER_INIT} of"]] = 1, 2
    planted.replant(tmp_path, MODEL, "resid_post", "compressors", table)
    compressors = tables(params, tmp_path)["compressors"]
    none, all_, half = (
        row(compressors, site="resid_post", condition="rtn-4", pairing=pairing)
        for pairing in (SAME_SEEDS, FIXED, OTHER_INIT)
    )
    # Clopper-Pearson: of 0 in n the upper end is 1 - .025^(1/n); of 1 in 2 both ends are 1 - sqrt(.975) from 0 and 1.
    assert (none["survival"], none["low"]) == (0, 0)
    assert none["high"] == pytest.approx(1 - 0.025**0.1)
    assert (all_["survival"], all_["high"]) == (1, 1)
    assert all_["low"] == pytest.approx(0.025**0.1)
    assert (half["low"], half["high"]) == pytest.approx((1 - math.sqrt(0.975), math.sqrt(0.975)))
    assert half["n_features"] == 2


def test_a_pairing_that_dense_saes_do_not_stand_in_has_no_row(found: Found) -> None:
    dense = rows(found["compressors"], site="resid_post", condition="dense")
    assert SAME_SEEDS not in set(dense["pairing"])
    assert {OTHER_INIT, FIXED} < set(dense["pairing"])
    assert dense["perplexity_ratio"].unique() == [1]


def test_costs_of_a_compressor_are_ratios_to_the_dense_model(found: Found) -> None:
    of = row(found["compressors"], site="resid_post", condition="magnitude-50", pairing=FIXED)
    assert of["perplexity_ratio"] == pytest.approx(math.exp(0.14))
    assert of["perplexity"] == pytest.approx(math.exp(3.14))
    assert of["fvu_ratio"] == pytest.approx(1.14)
    assert of["fvu_ratio_retrained"] == pytest.approx(0.19 / 0.2)
    assert of["survival"] == int(200 * math.exp(-0.14)) / 200


@pytest.fixture(scope="module")
def matched(params: config.Params, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Wanda's levels at perplexity ratios 1.25, 2 and 8, in 12, 8 and 4 bits; of 200 features 180, 160 and 80 kept."""
    root = tmp_path_factory.mktemp("matched")
    planted.plant(params, root)
    table = planted.compressors_table(params, MODEL, "resid_post").set_index("condition")
    for condition, ratio, bits, kept, fvu in (
        ("dense", 1, 16, 200, 0.2),
        ("wanda-20", 1.25, 12, 180, 0.22),
        ("wanda-50", 2, 8, 160, 0.3),
        ("wanda-70", 8, 4, 80, 0.6),
        ("rtn-4", 4, 4 * math.sqrt(2), 140, 0.4),  # halfway between two levels on either logarithm
        ("rtn-8", 1.1, 4, 190, 0.2),  # between the dense model and the first level; the bits of the last one
        ("magnitude-50", 8.5, 17, 60, 0.9),  # beyond either end
        ("wanda-2of4", 2, 8, 120, 0.4),
    ):
        columns = ["cross_entropy", "bits_per_weight", FIXED, "fvu_pretrained"]
        table.loc[condition, columns] = 3 + math.log(ratio), bits, kept, fvu
    planted.replant(root, MODEL, "resid_post", "compressors", table.reset_index())
    return tables(params, root)["matched"]


@pytest.mark.parametrize("by", ["perplexity", "bits a weight"])
def test_wanda_is_interpolated_along_the_logarithm_of_what_is_matched(matched: pd.DataFrame, by: str) -> None:
    kept = row(matched, condition="rtn-4", matched_by=by, quantity=FIXED)
    assert (kept["value"], kept["wanda"], kept["difference"]) == pytest.approx((0.7, 0.6, 0.1))
    fvu = row(matched, condition="rtn-4", matched_by=by, quantity="FVU ratio")
    assert (fvu["value"], fvu["wanda"]) == pytest.approx((2.0, (1.5 + 3.0) / 2))


def test_beyond_wandas_levels_there_is_no_value(matched: pd.DataFrame) -> None:
    for condition, by in (
        ("magnitude-50", "perplexity"),
        ("magnitude-50", "bits a weight"),
    ):
        beyond = rows(matched, condition=condition, matched_by=by)
        assert beyond[["wanda", "difference"]].isna().all(axis=None)
        assert beyond["value"].notna().all()
    at_the_end = row(matched, condition="rtn-8", matched_by="bits a weight", quantity=FIXED)
    assert at_the_end["wanda"] == pytest.approx(0.4)


def test_wanda_by_pattern_is_held_against_wanda_by_row(matched: pd.DataFrame) -> None:
    assert set(matched["condition"]) == {"wanda-2of4", "magnitude-50", "rtn-4", "rtn-8"}
    by_pattern = row(matched, condition="wanda-2of4", matched_by="perplexity", quantity=FIXED)
    assert by_pattern["difference"] == pytest.approx(0.6 - 0.8)


def test_where_wanda_has_one_level_only_nothing_is_matched(matched: pd.DataFrame) -> None:
    assert set(matched["site"]) == {"resid_post"}


@pytest.mark.parametrize(
    ("predictor", "score", "column", "sign"),
    [
        ("firing rate", "wanda", "rho_decoder_left", 1),
        ("encoder norm", "wanda", "rho_encoder_left", -1),
        ("encoder norm", "magnitude", "rho_encoder_left", -1),
        ("nearest decoder row", "wanda", "rho_decoder_left", 0),
        ("firing rate", "wanda", "rho_encoder_left", 0),
    ],
)
def test_spearman_has_the_planted_sign(found: Found, predictor: str, score: str, column: str, sign: int) -> None:
    tests = row(found["latents_tests"], site="resid_post", score=score, level=0.5, predictor=predictor)
    assert tests["n_latents"] == planted.LATENTS
    assert abs(tests[column]) < 0.2 if sign == 0 else sign * tests[column] > 0.3


def test_fifths_of_a_predictor_show_the_means_of_their_latents(found: Found, params: config.Params) -> None:
    latents = planted.latents_table(params, MODEL, "resid_post")
    of_way = rows(latents, score="wanda", level=0.5).sort_values("firing_rate")
    expected = of_way["decoder_left"].to_numpy().reshape(5, -1).mean(axis=1)
    where = {"site": "resid_post", "score": "wanda", "level": 0.5, "predictor": "firing rate", "part": "decoder"}
    fifths = rows(found["latents"], **where).sort_values("fifth")
    assert fifths["fifth"].tolist() == [1, 2, 3, 4, 5]
    assert fifths["left"].to_numpy() == pytest.approx(expected)
    assert (np.diff(fifths["left"]) > 0).all()
    assert (fifths["low"] < fifths["left"]).all() and (fifths["left"] < fifths["high"]).all()
    assert set(fifths["n"]) == {planted.LATENTS / 5}


@pytest.mark.parametrize("name", ["variants", "compressors", "latents"])
def test_a_place_without_its_file_is_named(params: config.Params, tmp_path: Path, name: str) -> None:
    planted.plant(params, tmp_path)
    (tmp_path / "artifacts" / "variants" / MODEL / "mlp_out" / f"{name}.parquet").unlink()
    with pytest.raises(InputError, match=f"{MODEL}/mlp_out/{name}.parquet"):
        tables(params, tmp_path)
