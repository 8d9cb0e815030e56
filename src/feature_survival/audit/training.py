"""SAEs trained on both models, alike in everything but the model: survival with its controls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from feature_survival.activations import Shards, measure_normalization
from feature_survival.audit.request import Request
from feature_survival.config import Sae, Seed
from feature_survival.matching import mutual_cosine, random_dictionary
from feature_survival.metrics.reconstruction import alive
from feature_survival.metrics.survival import FIXED, PAIRINGS, RANDOM, pairs
from feature_survival.metrics.transfer import Transfer, measure_transfer
from feature_survival.progress import progress
from feature_survival.sae import ROWS, Dictionary
from feature_survival.schema import InputError
from feature_survival.stages.metrics import RANDOM_SEEDS
from feature_survival.stats import cluster_bootstrap
from feature_survival.thresholds import KEPT, MAIN_TAU
from feature_survival.trainers import Job, train_saes

BASE_SEEDS = [Seed(0, 0), Seed(1, 1), Seed(0, 1)]  # the third: the ceiling of SAEs that share their start
COMPRESSED_SEEDS = [Seed(0, 0), Seed(1, 1)]
TAUS = (0.6, MAIN_TAU, 0.8)
SAMPLES = 1000  # of the bootstrap
STEPS = 400  # the fewest; batches grow to MOST_BATCH tokens where there are more
MOST_BATCH = 4096
BASE, COMPRESSED = "base", "compressed"


class Trained(NamedTuple):
    """SAEs of both models by their seeds, and those of the base on both models' activations."""

    base: dict[Seed, Dictionary]
    compressed: dict[Seed, Dictionary]
    transfers: dict[Seed, Transfer]
    cfg: Sae


def settings(request: Request, k: int, rows: int, width: int) -> Sae:
    """How SAEs of k are trained on `rows` activations: section `sae` of params.yaml, scaled to the SAE and the text.

    The learning rate falls with the square root of the number of features (Gao et al., arXiv 2406.04093, section 3.2).
    """
    features = request.expansion * width
    batch = min(MOST_BATCH, 2 ** int(math.log2(rows / STEPS)))
    steps = rows // batch
    return Sae(
        trainer="sparse",
        expansion=request.expansion,
        k=k,
        epochs=1,
        batch_tokens=batch,
        learning_rate=request.learning_rate or 5e-4 * math.sqrt(2**14 / features),
        warmup_steps=steps // 20,
        auxiliary_coefficient=1 / 32,
        dead_after_steps=steps // 8,
    )


def train(request: Request, k: int, base: Path, compressed: Path, out: Path) -> Trained:
    """Train SAEs of k on two folders of shards, normalised as the base's are, into `out`/base and `out`/compressed."""
    source = {BASE: Shards(base, "sae"), COMPRESSED: Shards(compressed, "sae")}
    normalization = measure_normalization(source[BASE])
    cfg = settings(request, k, len(source[BASE]), source[BASE].width)
    saes: dict[str, dict[Seed, Dictionary]] = {}
    for model, seeds in ((BASE, BASE_SEEDS), (COMPRESSED, COMPRESSED_SEEDS)):
        metadata: dict[str, object] = {
            "model_name": getattr(request, model),
            "hook_name": request.site,
            "context_size": request.window,
        }
        jobs = [Job(cfg, seed, out / model / seed.name) for seed in seeds]
        train_saes(jobs, source[model], normalization, metadata)
        saes[model] = {job.seed: Dictionary.read(job.folder, source[model].width) for job in jobs}
    transfers = {
        seed: measure_transfer(sae, *(Shards(of, "evaluation").batches(ROWS) for of in (base, compressed)))
        for seed, sae in progress(saes[BASE].items(), "transfer", len(saes[BASE]), "SAE")
    }
    return Trained(saes[BASE], saes[COMPRESSED], transfers, cfg)


def survival(trained: Trained, rows: int) -> list[dict[str, Any]]:
    """Which share of the base's alive features is found again in SAEs of the compressed model, and in the controls.

    rows: activations that the SAEs were measured on. Each row has one estimate a tau, with its 95% interval over
    SAEs x features. InputError where an SAE has no alive feature.
    """
    lives = {seed: alive(of.dense.firing_rate, rows) for seed, of in trained.transfers.items()}
    for seed, lived in lives.items():
        if not lived.any():
            raise InputError(
                f"--train-sae: no feature of the base's SAE {seed.name} fires on 10 of the {rows:,} tokens; "
                "give more text, or another --learning-rate"
            )
    found = [*_between(trained.base, trained.compressed, lives, is_control=False)]
    found += _between(trained.base, trained.base, lives, is_control=True)
    found.sort(key=lambda row: PAIRINGS.index(row["pairing"]))  # a ceiling below its pairing
    chance = []
    for number, (seed, sae) in enumerate(trained.base.items()):
        floor = random_dictionary(len(sae.W_dec), len(sae.b_dec), RANDOM_SEEDS + number)
        chance.append((seed, mutual_cosine(sae.W_dec, floor).cpu()[lives[seed]]))
    found.append(_row(RANDOM, True, chance))
    kept = [of.correlation[lives[seed]] for seed, of in trained.transfers.items()]
    found.append(_estimates(FIXED, False, [(of > KEPT).double().numpy()[:, None] for of in kept], [KEPT]))
    return found


def _between(
    base: dict[Seed, Dictionary], others: dict[Seed, Dictionary], lives: dict[Seed, Tensor], is_control: bool
) -> Iterator[dict[str, Any]]:
    """One row a pairing of seeds that occurs."""
    cosines: dict[str, list[tuple[Seed, Tensor]]] = {}
    for pairing, first, second in pairs(list(base), list(others), is_dense_cell=is_control):
        cosine = mutual_cosine(base[first].W_dec, others[second].W_dec).cpu()[lives[first]]
        cosines.setdefault(pairing, []).append((first, cosine))
    return (_row(pairing, is_control, cosines[pairing]) for pairing in PAIRINGS if pairing in cosines)


def _row(pairing: str, is_control: bool, cosines: list[tuple[Seed, Tensor]]) -> dict[str, Any]:
    """Shares found again; a feature that is paired with several SAEs counts as the share in which it is found."""
    by_sae: dict[Seed, list[np.ndarray]] = {}
    for seed, cosine in cosines:
        by_sae.setdefault(seed, []).append(np.stack([(cosine >= tau).double().numpy() for tau in TAUS], axis=1))
    return _estimates(pairing, is_control, [np.mean(of, axis=0) for of in by_sae.values()], list(TAUS))


def _estimates(pairing: str, is_control: bool, clusters: list[np.ndarray], at: list[float]) -> dict[str, Any]:
    estimates = cluster_bootstrap(clusters, SAMPLES, seed=0)
    return {
        "pairing": pairing,
        "control": is_control,
        "saes": len(clusters),
        "features": sum(map(len, clusters)),
        "shares": [{"threshold": tau, **of._asdict()} for tau, of in zip(at, estimates, strict=True)],
    }
