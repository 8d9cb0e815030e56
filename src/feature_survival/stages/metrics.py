"""Stage `metrics`: all numbers of a cell.

`metrics.json`: the model, its SAEs, the dense SAEs on it. `features.parquet`: one row a feature of a dense SAE.
`matches.parquet`: one row a feature of a dense SAE and an SAE it is compared with.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from feature_survival.activations import Shards
from feature_survival.artifacts import Cell, atomic_directory, read_json, text_folder, write_json
from feature_survival.catalogue import Site
from feature_survival.compression.condition import load_compressed
from feature_survival.config import Params, Seed
from feature_survival.metrics.causal import measure_effects, stratified
from feature_survival.metrics.language import mean_cross_entropy, strided_cross_entropy
from feature_survival.metrics.quality import measure_quality
from feature_survival.metrics.reconstruction import Reconstruction, alive, measure_reconstruction
from feature_survival.metrics.stability import match, random_sae
from feature_survival.metrics.survival import ABLATIONS, FEATURE, OUTCOMES, RANDOM, pairs, survival_by_feature
from feature_survival.metrics.transfer import Transfer, measure_transfer
from feature_survival.progress import progress
from feature_survival.sae import ROWS, Dictionary, read_movement
from feature_survival.schema import InputError
from feature_survival.text import read_vocabulary, strided_windows, windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANDOM_SEEDS = 10_000  # far from the SAEs' own: an equal seed draws the numbers an SAE starts from


def run(params: Params, cell: Cell) -> None:
    """Measure the cell and write all three files."""
    width = Shards(cell.cache, "evaluation").width
    dense = {seed: Dictionary.read(cell.dense.sae_of(seed), width) for seed in params.seeds.dense}
    own = {seed: Dictionary.read(cell.sae_of(seed), width) for seed in params.sae_seeds(cell.condition)}
    transfers = {
        seed: measure_transfer(
            sae,
            Shards(cell.dense.cache, "evaluation").batches(ROWS),
            Shards(cell.cache, "evaluation").batches(ROWS),
        )
        for seed, sae in progress(dense.items(), f"transfer {cell}", len(dense), "SAE")
    }
    features = pd.concat([_features(cell, seed, sae, transfers[seed]) for seed, sae in dense.items()])
    matches = _matches(params, cell, dense, own, features)
    survival = survival_by_feature(matches[matches["alive"]], params.metrics.taus)
    features = features.merge(survival, how="left", on=FEATURE, validate="one_to_one")
    model, tokens = load_compressed(cell, params.model(cell.model).dtype), _tokens(params, cell)
    if cell == cell.dense:
        reconstructions = {seed: transfer.compressed for seed, transfer in transfers.items()}
    else:
        reconstructions = {
            seed: measure_reconstruction(sae, Shards(cell.cache, "evaluation").batches(ROWS))
            for seed, sae in progress(own.items(), f"SAEs {cell}", len(own), "SAE")
        }
    numbers = _numbers(params, cell, model, tokens, dense, own, transfers, reconstructions)
    if cell == cell.dense:
        model = model.float()  # effects are smaller than what half precision rounds off
        site = params.model(cell.model).site(params.study.site)
        effects = [
            _effects(params, site, model, tokens, seed, dense[seed], features) for seed in params.seeds.compressed
        ]
        features = features.merge(pd.concat(effects), how="left", on=FEATURE, validate="one_to_one")
    with atomic_directory(cell.metrics) as folder:
        write_json(folder / "metrics.json", numbers)
        features.to_parquet(folder / "features.parquet", index=False)
        matches.drop(columns="alive").to_parquet(folder / "matches.parquet", index=False)


def _text_perplexity(params: Params, cell: Cell, model: PreTrainedModel) -> dict[str, float]:
    """Perplexity on a hub model's running text, as publications give it; nothing where the model has none."""
    hub = params.model(cell.model).weights.hub
    if hub is None or hub.text.perplexity is None:
        return {}
    text, settings = text_folder(cell.root, cell.model), params.metrics.perplexity
    found = strided_windows(text, "perplexity", read_vocabulary(cell.base), settings.window, settings.stride)
    # Windows are longer here: a batch holds as many tokens as elsewhere.
    batch = max(1, params.activations.batch_windows * params.window // settings.window)
    return {"text_perplexity": math.exp(strided_cross_entropy(model, *found, batch))}


def _tokens(params: Params, cell: Cell) -> Tensor:
    """The evaluation split, int64 [windows, position]."""
    count = params.activations.evaluation_windows
    return windows(text_folder(cell.root, cell.model), "evaluation", read_vocabulary(cell.base), params.window, count)


def _numbers(
    params: Params,
    cell: Cell,
    model: PreTrainedModel,
    tokens: Tensor,
    dense: dict[Seed, Dictionary],
    own: dict[Seed, Dictionary],
    transfers: dict[Seed, Transfer],
    reconstructions: dict[Seed, Reconstruction],
) -> dict[str, object]:
    """Perplexity of the model; quality of its own SAEs and of the dense model's SAEs on it."""
    batch, site = params.activations.batch_windows, params.model(cell.model).site(params.study.site)
    saes = {("dense", seed): sae for seed, sae in dense.items()}
    found = {("dense", seed): transfer.compressed for seed, transfer in transfers.items()}
    kind = "dense" if cell == cell.dense else "own"
    saes |= {(kind, seed): sae for seed, sae in own.items()}
    found |= {(kind, seed): reconstruction for seed, reconstruction in reconstructions.items()}
    spliced, rest = tokens.tensor_split([params.metrics.splice_windows])
    measured = measure_quality(model, site, saes, found, spliced, batch)
    entropy = measured.plain
    if len(rest):
        entropy += (mean_cross_entropy(model, rest, batch) - entropy) * len(rest) / len(tokens)

    def quality(kind: str, seed: Seed) -> dict[str, float]:
        return {"init_seed": seed.init, "data_seed": seed.data, **measured.saes[kind, seed]._asdict()}

    shards = Shards(cell.cache, "evaluation")
    condition = read_json(cell.prune / "condition.json")
    return {
        "parameters": model.num_parameters(),
        "site_width": shards.width,
        "achieved_sparsity": condition["achieved_sparsity"]["all"],
        "bits_per_weight": condition["bits_per_weight"],
        "cross_entropy": entropy,
        "perplexity": math.exp(entropy),
        **_text_perplexity(params, cell, model),
        "tokens": tokens.shape[0] * (tokens.shape[1] - 1),
        "ce_model": measured.plain,
        "ce_zero": measured.zero,
        "saes": [quality(kind, seed) for seed in own],
        "transfer": [
            {**quality("dense", seed), "jaccard": transfer.jaccard, "dense_fvu": transfer.dense.fvu}
            for seed, transfer in transfers.items()
        ],
    }


def _features(cell: Cell, seed: Seed, sae: Dictionary, transfer: Transfer) -> pd.DataFrame:
    """One row a feature of a dense SAE: what it is in the dense model, and its correlation with itself in the cell."""
    code = transfer.dense
    lives = alive(code.firing_rate, len(Shards(cell.dense.cache, "evaluation")))
    if not lives.any():
        raise InputError(
            f"stage metrics: no feature of {cell.dense}'s SAE {seed.name} is alive; train it on more tokens, or "
            "measure it on more (activations.evaluation_windows)"
        )
    return pd.DataFrame(
        {
            "dense_seed": seed.name,
            "feature": range(len(code.firing_rate)),
            "alive": lives.numpy(),
            "firing_rate": code.firing_rate.numpy(),
            "mean_activation": code.mean_activation.numpy(),
            "max_activation": code.max_activation.numpy(),
            "encoder_decoder_cosine": F.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=1).cpu().numpy(),
            "displacement": 1 - read_movement(cell.dense.sae_of(seed)).numpy(),
            "correlation": transfer.correlation.numpy(),
        }
    )


def _matches(
    params: Params, cell: Cell, dense: dict[Seed, Dictionary], own: dict[Seed, Dictionary], features: pd.DataFrame
) -> pd.DataFrame:
    """One row a feature of a dense SAE and an SAE of the cell it is compared with, in one of the pairings."""
    others = [
        (pair.pairing, pair.dense, pair.compressed.name, own[pair.compressed])
        for pair in pairs(params.seeds.dense, list(own), cell == cell.dense)
    ]
    if cell == cell.dense:
        others += [
            (RANDOM, seed, f"random{number}", random_sae(sae, RANDOM_SEEDS + params.metrics.seed + number))
            for number, (seed, sae) in enumerate(dense.items())
        ]
    frames = []
    for pairing, seed, name, sae in progress(others, f"matching {cell}", len(others), "pair"):
        frame = features.loc[features["dense_seed"] == seed.name, [*FEATURE, "alive"]]
        columns = match(dense[seed], sae, torch.tensor(frame["alive"].to_numpy()))
        frames.append(
            frame.assign(
                pairing=pairing, compressed_seed=name, **{key: value.numpy() for key, value in columns.items()}
            )
        )
    return pd.concat(frames, ignore_index=True)


def _effects(
    params: Params,
    site: Site,
    model: PreTrainedModel,
    tokens: Tensor,
    seed: Seed,
    sae: Dictionary,
    features: pd.DataFrame,
) -> pd.DataFrame:
    """Causal effects of a sample of a dense SAE's alive features in the dense model, one row a feature."""
    of_sae = features[features["dense_seed"] == seed.name]
    rate, lives = (torch.tensor(of_sae[column].to_numpy()) for column in ("firing_rate", "alive"))
    chosen = stratified(rate, lives, params.metrics.causal_features, params.metrics.seed)
    mean = rate * torch.tensor(of_sae["mean_activation"].to_numpy())  # over all tokens, silent ones too
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(params.metrics.seed))
    found = measure_effects(
        model,
        site,
        sae,
        chosen,
        mean[chosen],
        tokens[order],
        params.metrics.causal_windows,
        params.activations.batch_windows,
    )
    values = {"ce": found.cross_entropy, "kl": found.kl}
    columns = {
        column: values[outcome][:, ABLATIONS.index(ablation)].numpy()
        for (outcome, ablation), column in OUTCOMES.items()
    }
    return pd.DataFrame(
        {
            "dense_seed": seed.name,
            "feature": chosen.numpy(),
            "causal_contexts": found.contexts.numpy(),
            "causal_tokens": found.tokens.numpy(),
            **columns,
        }
    )
