"""Stage `cache`: the activations of a cell, the same tokens in the same order for every cell of a model."""

from __future__ import annotations

from feature_survival.activations import Shards, measure_normalization, write_normalization, write_shards
from feature_survival.artifacts import Cell, atomic_directory, text_folder
from feature_survival.compression.condition import load_compressed
from feature_survival.config import Params
from feature_survival.text import read_vocabulary, windows


def run(params: Params, cell: Cell) -> None:
    """Cache the sae and evaluation splits; the dense cell adds the normalisation that all its conditions use."""
    settings = params.activations
    spec = params.model(cell.model)
    vocabulary, text = read_vocabulary(cell.base), text_folder(cell.root, cell.model)
    model, site = load_compressed(cell, spec.dtype), spec.site(params.study.site)
    with atomic_directory(cell.cache) as folder:
        for split, count in (("sae", settings.sae_windows), ("evaluation", settings.evaluation_windows)):
            tokens = windows(text, split, vocabulary, params.window, count)
            write_shards(model, site, tokens, settings.batch_windows, settings.shard_windows, folder, split)
        if cell == cell.dense:
            write_normalization(measure_normalization(Shards(folder, "sae")), folder)
