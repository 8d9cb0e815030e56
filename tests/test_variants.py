"""Study B: pruned SAEs against slow formulas, and stage `variants` on a tiny project."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY_STUDY, WriteParams, contents
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from torch import Tensor

from feature_survival.activations import Normalization
from feature_survival.metrics import BOTH, DECODER, ENCODER, PARTS
from feature_survival.metrics.variants import (
    Norms,
    measure_norms,
    neighbour_cosine,
    prune_sae,
    share_left,
)
from feature_survival.sae import Dictionary
from feature_survival.schema import InputError
from feature_survival.stages.variants import _check_left_alone

WIDTH, LATENTS, K = 8, 24, 3


def drawn(seed: int = 0) -> tuple[Dictionary, Normalization, Norms]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sae = Dictionary(noise(WIDTH, LATENTS), noise(LATENTS), noise(LATENTS, WIDTH), noise(WIDTH), K)
    return sae, Normalization(noise(WIDTH), 1.7), Norms(noise(WIDTH).abs(), noise(LATENTS).abs())


def slow_keep(scores: list[list[float]], sparsity: float) -> list[list[bool]]:
    """Row by row, the lowest floor(n * sparsity) go."""
    kept = []
    for row in scores:
        order = sorted(range(len(row)), key=lambda j: (row[j], j))
        gone = set(order[: int(len(row) * sparsity)])
        kept.append([j not in gone for j in range(len(row))])
    return kept


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("score", ["magnitude", "wanda"])
def test_a_pruned_sae_is_what_the_slow_formula_gives(score: str, sparsity: float) -> None:
    sae, normalization, norms = drawn()
    pruned = prune_sae(sae, normalization, norms, score, sparsity, "row", BOTH)
    weight_x = norms.inputs if score == "wanda" else torch.ones(WIDTH)
    weight_a = norms.codes if score == "wanda" else torch.ones(LATENTS)
    # A latent's row of the encoder: |W_enc_ij| * ||x_i|| over inputs i.
    scores = [[abs(sae.W_enc[i, j].item()) * weight_x[i].item() for i in range(WIDTH)] for j in range(LATENTS)]
    keep = torch.tensor(slow_keep(scores, sparsity)).T
    assert torch.equal(pruned.W_enc, sae.W_enc * keep)
    # An output's row of the decoder: |W_dec_ij| * ||a_i|| over latents i.
    scores = [[abs(sae.W_dec[i, j].item()) * weight_a[i].item() for i in range(LATENTS)] for j in range(WIDTH)]
    keep = torch.tensor(slow_keep(scores, sparsity)).T
    assert torch.equal(pruned.W_dec, sae.W_dec * keep)
    assert torch.equal(pruned.b_dec, sae.b_dec)
    assert pruned.k == sae.k


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), sparsity=st.integers(0, 99), part=st.sampled_from(PARTS))
def test_pruning_an_sae_moves_no_pre_activation_at_the_mean_and_only_the_part_asked_for(
    seed: int, sparsity: int, part: str
) -> None:
    sae, normalization, norms = drawn(seed)
    pruned = prune_sae(sae, normalization, norms, "wanda", sparsity / 100, "row", part)
    mean = normalization.mean
    torch.testing.assert_close(mean @ pruned.W_enc + pruned.b_enc, mean @ sae.W_enc + sae.b_enc, rtol=0, atol=1e-4)
    assert torch.equal(pruned.W_enc, sae.W_enc) == (part == DECODER or sparsity * WIDTH < 100)
    assert torch.equal(pruned.W_dec, sae.W_dec) == (part == ENCODER or sparsity * LATENTS < 100)


def test_a_pattern_may_be_what_an_sae_is_pruned_within() -> None:
    sae, normalization, norms = drawn()
    pruned = prune_sae(sae, normalization, norms, "magnitude", 0.5, "2:4", BOTH)
    assert ((pruned.W_enc.T.reshape(LATENTS, -1, 4) == 0).sum(-1) == 2).all()


def test_norms_are_those_of_normalised_inputs_and_of_codes_whatever_the_batches() -> None:
    sae, normalization, _ = drawn()
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1))
    found = measure_norms(sae, normalization, x.split(7))
    torch.testing.assert_close(found.inputs, ((x - normalization.mean) / normalization.scale).norm(dim=0))
    torch.testing.assert_close(found.codes, sae.codes(x).norm(dim=0))


def test_the_nearest_other_row_and_the_share_left_by_hand() -> None:
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    root = 0.5**0.5
    torch.testing.assert_close(neighbour_cosine(rows, chunk=2), torch.tensor([root, root, root]))
    torch.testing.assert_close(neighbour_cosine(rows[:2]), torch.tensor([0.0, 0.0]))
    left = share_left(torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    assert left.tolist() == [9 / 25, 0.0]


def test_a_model_that_splicing_has_changed_is_refused() -> None:
    _check_left_alone("tiny/resid_post wanda-50", 2.0, 2.0)
    with pytest.raises(InputError, match=r"wanda-50: ce_without_sae is 2\.000000, the model's own 2\.001000"):
        _check_left_alone("tiny/resid_post wanda-50", 2.0, 2.001)


@pytest.fixture
def compressed(project: Path, cli, write_params: WriteParams) -> Path:
    """A project whose model is compressed; `same` removes nothing."""
    same = {"method": "magnitude", "sparsity": 0.0}
    write_params(project, {**TINY_STUDY, "conditions.same": same, "variants.compressors": ["rtn-4", "same"]})
    ended = cli(project, "prune", "tiny")
    assert ended.code == 0, ended.err
    return project


def test_the_stage_measures_every_variant_on_one_model_and_repeats_to_the_byte(compressed: Path, cli) -> None:
    ended = cli(compressed, "variants", "tiny", "resid_post")
    assert ended.code == 0, ended.err
    out = compressed / "artifacts" / "variants" / "tiny" / "resid_post"
    table = pd.read_parquet(out / "variants.parquet")
    for condition, of_model in table[table["condition"] != "dense"].groupby("condition"):
        assert of_model["ce_without_sae"].nunique() == 1
        assert of_model["tokens"].nunique() == 1
        assert set(of_model["kind"]) == {"pretrained", "retrained"} | ({"pruned"} if condition == "wanda-50" else set())
    main = table[table["condition"] == "wanda-50"]
    standard = main[main["sae"] == "standard"]
    assert (standard["l0"] <= 4).all() and standard["l0"].max() - standard["l0"].min() < 0.5
    assert set(zip(standard["score"], standard["part"], strict=True)) == {
        ("", ""),
        ("magnitude", BOTH),
        *(("wanda", part) for part in PARTS),
    }
    assert set(main["sae"]) == {"standard", "narrow"}
    scored = main["part"].isin(["", BOTH]) & (main["sae"] == "standard")
    assert main.loc[scored, ["probing_1", "probing_5", "disentanglement"]].notna().all(axis=None)
    assert main.loc[~scored, "probing_1"].isna().all()
    latents = pd.read_parquet(out / "latents.parquet")
    assert latents[["decoder_left", "encoder_left"]].min(axis=None) >= 0
    assert latents[["decoder_left", "encoder_left"]].max(axis=None) <= 1 + 1e-9
    # What removes nothing changes nothing: the same training gives the same SAE, every feature is found and kept.
    compressors = pd.read_parquet(out / "compressors.parquet").set_index("condition")
    same = compressors.loc["same"]
    assert same["fixed dictionary"] == same["fixed dictionary of"] > 0
    assert same["same init, same order"] == same["same init, same order of"]
    assert same["fvu_pretrained"] == same["fvu_retrained"] == compressors.loc["dense", "fvu_pretrained"]
    assert compressors.loc["rtn-4", "bits_per_weight"] == 4 + 16 / 16
    folder = compressed / "artifacts" / "tiny" / "variants" / "resid_post"
    assert not (folder / "scratch").exists()
    loaded = SAE.load_from_disk(folder / "wanda-50" / "standard" / "init0-data0")
    assert loaded.cfg.d_in == 32
    first = contents(out), contents(folder)
    assert cli(compressed, "variants", "tiny", "resid_post").code == 0
    assert (contents(out), contents(folder)) == first


def test_other_sites_see_the_main_condition_only(compressed: Path, cli) -> None:
    ended = cli(compressed, "variants", "tiny", "attention")
    assert ended.code == 0, ended.err
    table = pd.read_parquet(compressed / "artifacts" / "variants" / "tiny" / "attention" / "variants.parquet")
    assert set(table["condition"]) == {"dense", "wanda-50"}
    assert set(table["sae"]) == {"standard"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "attn"], "site: unknown name 'attn'; did you mean 'attention'"),
        (["tinny", "attention"], "model: unknown name 'tinny'"),
    ],
)
def test_an_unknown_site_or_model_is_refused_in_one_line(compressed: Path, cli, arguments, message) -> None:
    ended = cli(compressed, "variants", *arguments)
    assert ended.code == 2
    assert message in ended.err and len(ended.err.splitlines()) == 1


def test_an_sae_of_other_inputs_than_the_site_is_refused_by_name(compressed: Path, cli) -> None:
    assert cli(compressed, "variants", "tiny", "attention").code == 0
    folder = compressed / "artifacts" / "tiny" / "variants" / "attention" / "dense" / "standard" / "init0-data0"
    Dictionary.read(folder, 32)
    with pytest.raises(InputError, match="the SAE reads 32 inputs, the site has 64; allowed: an SAE of 64 inputs"):
        Dictionary.read(folder, 64)
