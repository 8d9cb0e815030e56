"""Sparse autoencoders: same seeds, same bytes; the same function in sae-lens and here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import SITE_WIDTH as WIDTH
from conftest import contents, truncate
from safetensors.torch import load_file, save_file
from torch import Tensor

from feature_survival.activations import Normalization, Shards, measure_normalization
from feature_survival.artifacts import read_json, write_json
from feature_survival.config import Sae, Seed
from feature_survival.metrics.reconstruction import measure_reconstruction
from feature_survival.sae import Dictionary, read_movement
from feature_survival.schema import InputError
from feature_survival.trainers import Job, token_batches, train_saes
from feature_survival.trainers.files import fold_normalization

SETTINGS = Sae(
    trainer="sparse",
    expansion=4,
    k=4,
    epochs=2,
    batch_tokens=64,
    learning_rate=4e-3,
    warmup_steps=5,
    auxiliary_coefficient=1 / 32,
    dead_after_steps=10,
)
METADATA: dict[str, object] = {
    "model_name": "tiny",
    "architecture_name": "LlamaForCausalLM",
    "hook_name": "resid_post.1",
    "condition": "wanda-50",
    "context_size": 16,
}


def trained(shards: Shards, folder: Path, seed: Seed, settings: Sae = SETTINGS) -> Path:
    train_saes([Job(settings, seed, folder)], shards, measure_normalization(shards), METADATA)
    return folder


@pytest.fixture(scope="module")
def saved(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(shards, tmp_path_factory.mktemp("saes") / "first", Seed(0, 0))


def weights(folder: Path) -> bytes:
    return (folder / "sae_weights.safetensors").read_bytes()


def test_the_same_seeds_give_the_same_bytes(shards: Shards, saved: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    torch.rand(7)
    assert contents(trained(shards, tmp_path / "again", Seed(0, 0))) == contents(saved)


@pytest.mark.parametrize("seed", [Seed(0, 1), Seed(1, 0)])
def test_another_init_or_data_seed_gives_another_sae(shards: Shards, saved: Path, tmp_path: Path, seed: Seed) -> None:
    other = trained(shards, tmp_path / "other", seed)
    assert weights(other) != weights(saved)
    metadata = read_json(other / "cfg.json")["metadata"]
    assert (metadata["init_seed"], metadata["data_seed"]) == seed


def test_the_init_seed_alone_draws_the_starting_weights(shards: Shards, tmp_path: Path) -> None:
    barely = SETTINGS.model_copy(update={"learning_rate": 1e-12, "epochs": 1})
    start, other_order, other_init = (
        load_file(trained(shards, tmp_path / seed.name, seed, barely) / "sae_weights.safetensors")["W_dec"]
        for seed in (Seed(0, 0), Seed(0, 1), Seed(1, 0))
    )
    torch.testing.assert_close(start, other_order)
    assert F.cosine_similarity(start.float(), other_init.float()).abs().mean() < 0.5


def test_movement_is_the_cosine_of_each_decoder_row_to_the_row_it_started_from(
    shards: Shards, saved: Path, tmp_path: Path
) -> None:
    barely = SETTINGS.model_copy(update={"learning_rate": 1e-12, "epochs": 1})
    start = trained(shards, tmp_path / "start", Seed(0, 1), barely)
    still, moved = read_movement(start), read_movement(saved)
    assert still.shape == moved.shape == (4 * WIDTH,)
    assert still.dtype == moved.dtype == torch.float32
    torch.testing.assert_close(still, torch.ones_like(still), rtol=0, atol=1e-5)
    expected = F.cosine_similarity(Dictionary.read(start).W_dec, Dictionary.read(saved).W_dec, dim=1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-3)
    assert moved.min() < 0.9
    assert moved.std() > 0.01


def test_a_saved_sae_loads_with_sae_lens_and_says_what_it_was_trained_on(saved: Path) -> None:
    from sae_lens import SAE

    sae = SAE.load_from_disk(saved)
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.k) == (WIDTH, 4 * WIDTH, 4)  # type: ignore[attr-defined]
    for key, value in {**METADATA, "init_seed": 0, "data_seed": 0}.items():
        assert getattr(sae.cfg.metadata, key) == value


def test_encoding_and_decoding_agree_with_sae_lens(saved: Path, shards: Shards) -> None:
    from sae_lens import SAE

    sae, mine = SAE.load_from_disk(saved), Dictionary.read(saved)
    noise = 5 + torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1))
    for x in (shards.gather(torch.arange(300)), noise):
        with torch.no_grad():
            expected, reconstruction = sae.encode(x), sae(x)
        values, features = mine.encode(x)
        assert values.shape == features.shape == (len(x), 4)
        dense = torch.zeros_like(expected).scatter(1, features, values)
        torch.testing.assert_close(dense, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mine.decode(values, features), reconstruction, rtol=1e-3, atol=1e-3)
        batched = mine.reconstruct(x.view(2, -1, WIDTH))
        torch.testing.assert_close(batched.view(-1, WIDTH), reconstruction, rtol=1e-3, atol=1e-3)


def test_decoder_rows_have_unit_norm(saved: Path) -> None:
    norms = Dictionary.read(saved).W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-3)


def test_training_explains_most_of_the_planted_variance(saved: Path, shards: Shards) -> None:
    assert measure_reconstruction(Dictionary.read(saved), shards.batches(500)).fvu < 0.5


def test_folding_the_normalisation_changes_nothing_but_the_scale() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    state = {"W_enc": draw(8, 24), "b_enc": draw(24), "W_dec": draw(24, 8), "b_dec": draw(8)}
    normalization = Normalization(3 * draw(8), 2.5)
    plain, folded = (Dictionary(**s, k=3) for s in (state, fold_normalization(state, normalization)))
    x = draw(50, 8) * 4
    z = (x - normalization.mean) / normalization.scale
    values, features = plain.encode(z)
    raw_values, raw_features = folded.encode(x)
    assert torch.equal(features.sort(1).values, raw_features.sort(1).values)
    torch.testing.assert_close(raw_values.sum(1), normalization.scale * values.sum(1))
    expected = plain.decode(values, features) * normalization.scale + normalization.mean
    torch.testing.assert_close(folded.decode(raw_values, raw_features), expected)


@pytest.mark.parametrize(("rows", "batch"), [(64, 8), (70, 8), (8, 8)])
def test_the_order_of_tokens_covers_each_row_at_most_once_an_epoch(rows: int, batch: int) -> None:
    steps = rows // batch
    batches = list(token_batches(rows, batch, 3, seed=0))
    assert [len(b) for b in batches] == [batch] * (3 * steps)
    epochs = [torch.cat(batches[steps * epoch : steps * (epoch + 1)]) for epoch in range(3)]
    for epoch in epochs:
        assert len(epoch.unique()) == steps * batch
        assert epoch.min() >= 0
        assert epoch.max() < rows
    assert not torch.equal(epochs[0], epochs[1])


def test_the_order_of_tokens_is_the_seeds() -> None:
    first, same, other = (torch.cat(list(token_batches(64, 8, 1, seed))) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_diverging_sae_stops_the_stage_by_name_and_writes_nothing(shards: Shards, tmp_path: Path) -> None:
    diverging = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(InputError, match=r"stage sae: init0-data0: loss is (nan|inf) at step \d+ of 92\b"):
        trained(shards, tmp_path / "sae", Seed(0, 0), diverging)
    assert not (tmp_path / "sae").exists()


def test_a_batch_larger_than_the_split_is_refused(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sae\.batch_tokens: 4096 asked, the sae split has 3000 tokens"):
        trained(shards, tmp_path / "sae", Seed(0, 0), SETTINGS.model_copy(update={"batch_tokens": 4096}))


@pytest.mark.parametrize("kind", ["topk", "topk, rescaled", "jumprelu", "standard"])
@pytest.mark.parametrize("centred", [True, False])
def test_saes_that_others_trained_do_what_sae_lens_says_they_do(kind: str, centred: bool, tmp_path: Path) -> None:
    import sae_lens

    classes = {"topk": "TopKSAE", "jumprelu": "JumpReLUSAE", "standard": "StandardSAE"}
    name = classes[kind.split(",")[0]]
    settings = {"topk": {"k": 4}, "topk, rescaled": {"k": 4, "rescale_acts_by_decoder_norm": True}}.get(kind, {})
    config = getattr(sae_lens, f"{name}Config")(d_in=16, d_sae=40, apply_b_dec_to_input=centred, **settings)
    torch.manual_seed(0)
    sae = getattr(sae_lens, name)(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter))
    sae.save_model(tmp_path)
    x = torch.randn(50, 16)
    ours = Dictionary.read(tmp_path, 16)
    torch.testing.assert_close(ours.reconstruct(x), sae(x), rtol=1e-4, atol=1e-4)
    expected = sae.encode(x)
    if "rescaled" not in kind:
        torch.testing.assert_close(ours.codes(x), expected, rtol=1e-4, atol=1e-4)
    values, features = ours.encode(x)
    assert values.shape == features.shape
    assert torch.equal((values > 0).sum(1), (expected > 0).sum(1))


def test_an_sae_of_which_nothing_fires_reconstructs_its_bias() -> None:
    sae = Dictionary(torch.zeros(3, 5), torch.zeros(5), torch.ones(5, 3), torch.ones(3), None, torch.ones(5))
    assert torch.equal(sae.reconstruct(torch.randn(4, 3)), torch.ones(4, 3))


def test_saes_of_another_kind_and_broken_files_are_refused(saved: Path, tmp_path: Path) -> None:
    config, tensors = read_json(saved / "cfg.json"), load_file(saved / "sae_weights.safetensors")
    weights_file = tmp_path / "sae_weights.safetensors"
    save_file(tensors, weights_file)
    for key, value in {"architecture": "gated", "normalize_activations": "layer_norm"}.items():
        write_json(tmp_path / "cfg.json", {**config, key: value})
        with pytest.raises(InputError, match=f"cfg.json: {key} is '{value}'; allowed"):
            Dictionary.read(tmp_path)
    write_json(tmp_path / "cfg.json", [config])
    with pytest.raises(InputError, match=r"cfg\.json: a list; allowed: settings by name"):
        Dictionary.read(tmp_path)
    write_json(tmp_path / "cfg.json", config)
    Dictionary.read(tmp_path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "b_dec"}, weights_file)
    with pytest.raises(InputError, match="tensor 'b_dec' is missing"):
        Dictionary.read(tmp_path)
    truncate(weights_file)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        Dictionary.read(tmp_path)
