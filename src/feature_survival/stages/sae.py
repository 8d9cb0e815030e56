"""Stage `sae`: the SAEs of a cell, one for each pair of seeds."""

from __future__ import annotations

from feature_survival.activations import Shards, read_normalization
from feature_survival.artifacts import Cell, atomic_directory
from feature_survival.config import Params
from feature_survival.progress import progress
from feature_survival.sae import train_sae


def run(params: Params, cell: Cell) -> None:
    """Train on the cell's activations, normalised as the dense model's are."""
    shards = Shards(cell.cache, "sae")
    normalization = read_normalization(cell.dense.cache)
    model = params.model(cell.model)
    metadata: dict[str, object] = {
        "model_name": cell.model,
        "architecture_name": model.architecture,
        "hook_name": str(model.site(params.study.site)),
        "condition": cell.condition,
        "context_size": params.window,
    }
    seeds = params.sae_seeds(cell.condition)
    with atomic_directory(cell.sae) as folder:
        for seed in progress(seeds, f"sae {cell}", len(seeds), "SAE"):
            train_sae(params.sae, shards, normalization, seed, metadata, folder / seed.name)
