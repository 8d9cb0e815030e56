"""Stage `contexts`: where the features of a dense SAE fire most, in the dense model and in a cell, for the report.

One row a feature, model and window, strongest first; no model is run: the cache has every activation that is asked for.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from feature_survival.activations import Shards
from feature_survival.artifacts import Cell, atomic_file, read_parquet, text_folder
from feature_survival.config import Params
from feature_survival.contexts import excerpts
from feature_survival.metrics.survival import FEATURE, OUTCOMES
from feature_survival.progress import progress
from feature_survival.sae import Dictionary
from feature_survival.text import read_vocabulary, windows

MODELS = ("dense", "compressed")


def run(params: Params, cell: Cell) -> None:
    """Write the table: `feature`, `by` (in which of MODELS it fires most there), `peak` (place of the strongest token),
    `tokens`, and what it does on each of them in `dense` and `compressed`."""
    features, vocabulary = _shown(params, cell), read_vocabulary(cell.base)
    shards = [Shards(of.cache, "evaluation") for of in (cell.dense, cell)]
    sae = Dictionary.read(cell.dense.sae_of(params.seeds.compressed[0]), shards[0].width)
    count = params.activations.evaluation_windows
    tokens = windows(text_folder(cell.root, cell.model), "evaluation", vocabulary, params.window, count)
    rows = []
    for by, name in enumerate(progress(MODELS, f"contexts {cell}", len(MODELS), "model")):
        found = excerpts(sae, features, shards, by, tokens, vocabulary.tokenizer)
        for feature, of_feature in zip(features.tolist(), found, strict=True):
            for one in of_feature:
                activations = dict(zip(MODELS, one.activations, strict=True))
                rows.append({"feature": feature, "by": name, "peak": one.peak, "tokens": one.tokens, **activations})
    with atomic_file(cell.contexts) as path:
        pd.DataFrame(rows).to_parquet(path, index=False, compression="zstd")


def _shown(params: Params, cell: Cell) -> Tensor:
    """Numbers of the alive features of the dense SAE that causal effects were measured of, int64 [n]; where there are
    more than are shown, those with an effect first."""
    effect = next(iter(OUTCOMES.values()))
    table = read_parquet(cell.dense.metrics / "features.parquet", [*FEATURE, "alive", effect])
    table = table[table["alive"] & (table["dense_seed"] == params.seeds.compressed[0].name)]
    first = table.sort_values(effect, key=pd.isna, kind="stable").head(params.report.features)
    return torch.tensor(first["feature"].sort_values().to_numpy())
