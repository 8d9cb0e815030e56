"""Stage `sae`: the SAEs of a cell, one for each pair of seeds."""

from __future__ import annotations

from feature_survival.activations import Shards, read_normalization
from feature_survival.artifacts import Cell, atomic_directory
from feature_survival.config import Params
from feature_survival.trainers import Job, train_saes
from feature_survival.trainers.files import origin


def run(params: Params, cell: Cell) -> None:
    """Train on the cell's activations, normalised as the dense model's are."""
    shards = Shards(cell.cache, "sae")
    normalization = read_normalization(cell.dense.cache)
    metadata = origin(params, cell.model, cell.condition, params.model(cell.model).site(params.study.site))
    with atomic_directory(cell.sae) as folder:
        jobs = [Job(params.sae, seed, folder / seed.name) for seed in params.sae_seeds(cell.condition)]
        train_saes(jobs, shards, normalization, metadata)
