"""Stage `metrics`: all numbers of a cell, as `metrics.json` and `features.parquet` (one row a feature and pair)."""

from __future__ import annotations

import math

import pandas as pd
import torch

from feature_survival.activations import Shards
from feature_survival.artifacts import Cell, atomic_directory, read_json, write_json
from feature_survival.compression.condition import load_compressed
from feature_survival.config import Params, Seed
from feature_survival.corpus import read_tokenizer, windows
from feature_survival.matching import mutual_cosine, random_dictionary
from feature_survival.metrics.language import Splice, mean_cross_entropy, spliced_cross_entropy
from feature_survival.metrics.reconstruction import alive, measure_reconstruction
from feature_survival.metrics.survival import RANDOM, pairs
from feature_survival.progress import progress
from feature_survival.sae import Dictionary

ROWS = 16384  # activations encoded at a time


def run(params: Params, cell: Cell) -> None:
    """Measure the cell and write both files."""
    numbers = _model_and_saes(params, cell)
    features = _features(params, cell)
    with atomic_directory(cell.metrics) as folder:
        write_json(folder / "metrics.json", numbers)
        features.to_parquet(folder / "features.parquet", index=False)


def _model_and_saes(params: Params, cell: Cell) -> dict[str, object]:
    """Perplexity of the model; FVU, L0, dead share and spliced cross-entropy of each of its SAEs."""
    tokenizer = read_tokenizer(cell.base / "tokenizer.json")
    count = params.activations.evaluation_windows
    tokens = windows(cell.root / "data", "evaluation", tokenizer, params.window, count)
    batch = params.activations.batch_windows
    model, site = load_compressed(cell), params.model(cell.model).where
    entropy = mean_cross_entropy(model, tokens, batch)
    spliced = tokens[: params.metrics.splice_windows]
    plain = mean_cross_entropy(model, spliced, batch)
    zero = spliced_cross_entropy(model, site, torch.zeros_like, spliced, batch)
    shards = Shards(cell.cache, "evaluation")
    saes = []
    seeds = params.sae_seeds(cell.condition)
    for seed in progress(seeds, f"metrics {cell}", len(seeds), "SAE"):
        sae = Dictionary.read(cell.sae_of(seed))
        quality = measure_reconstruction(sae, shards.batches(ROWS))
        splice = Splice(plain, zero, spliced_cross_entropy(model, site, sae.reconstruct, spliced, batch))
        saes.append(
            {
                "init_seed": seed.init,
                "data_seed": seed.data,
                "fvu": quality.fvu,
                "l0": quality.l0,
                "share_dead": quality.share_dead,
                "ce_sae": splice.sae,
                "ce_loss_score": splice.score,
            }
        )
    return {
        "achieved_sparsity": read_json(cell.prune / "sparsity.json")["all"],
        "cross_entropy": entropy,
        "perplexity": math.exp(entropy),
        "tokens": tokens.shape[0] * (tokens.shape[1] - 1),
        "ce_model": plain,
        "ce_zero": zero,
        "saes": saes,
    }


def _features(params: Params, cell: Cell) -> pd.DataFrame:
    """One row a dense feature and pairing: is it alive, how often does it fire, where is its mutual neighbour."""
    shards = Shards(cell.dense.cache, "evaluation")
    dense = {seed: Dictionary.read(cell.dense.sae_of(seed)) for seed in params.seeds.dense}
    rates = {
        seed: measure_reconstruction(sae, shards.batches(ROWS)).firing_rate
        for seed, sae in progress(dense.items(), f"dense features {cell}", len(dense), "SAE")
    }

    def rows(pairing: str, seed: Seed, other: str, decoder: torch.Tensor) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "pairing": pairing,
                "dense_seed": seed.name,
                "compressed_seed": other,
                "feature": range(len(rates[seed])),
                "alive": alive(rates[seed], len(shards)).numpy(),
                "firing_rate": rates[seed].numpy(),
                "mutual_cosine": mutual_cosine(dense[seed].W_dec, decoder).cpu().numpy(),
            }
        )

    frames = [
        rows(pair.pairing, pair.dense, pair.compressed.name, Dictionary.read(cell.sae_of(pair.compressed)).W_dec)
        for pair in pairs(params.seeds.dense, params.sae_seeds(cell.condition), cell == cell.dense)
    ]
    if cell == cell.dense:
        for number, (seed, sae) in enumerate(dense.items()):
            chance = random_dictionary(len(sae.W_dec), len(sae.b_dec), params.metrics.seed + number)
            frames.append(rows(RANDOM, seed, f"random{number}", chance))
    return pd.concat(frames, ignore_index=True)
