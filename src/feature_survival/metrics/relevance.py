"""RQ5: do the features that survive matter more to the model? Statistics on measured causal effects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from feature_survival.metrics.quintiles import BINS, quintiles
from feature_survival.stats import Estimate, bootstrap_delta, mann_whitney, spearman


class Features(NamedTuple):
    """Features of one dense SAE whose effect was measured."""

    firing_rate: np.ndarray  # [n]
    effect: np.ndarray  # [n]
    survived: np.ndarray  # bool [n]


class Relevance(NamedTuple):
    """Effects of survivors against those of casualties, in a sample with as many of each in every quintile of rate."""

    survivors: np.ndarray  # [n]: their effects, all SAEs together
    casualties: np.ndarray  # [n]
    rho: float  # Spearman(effect, survival), mean over dense SAEs
    delta: Estimate  # Cliff's delta, positive where survivors have the larger effects, mean over dense SAEs
    p: float  # Mann-Whitney, two-sided, all SAEs together


def balanced(features: Features, seed: int) -> Features:
    """The largest sample with equally many survivors and casualties in every quintile of firing rate."""
    draw = np.random.default_rng(seed)
    of = quintiles(features.firing_rate)
    chosen: list[int] = []
    for number in range(BINS):
        groups = [np.flatnonzero((of == number) & (features.survived == found)) for found in (True, False)]
        fewest = min(len(group) for group in groups)
        chosen += [index for group in groups for index in draw.permutation(group)[:fewest]]
    rows = np.sort(np.array(chosen, dtype=np.int64))
    return Features(*(column[rows] for column in features))


def measure_relevance(saes: list[Features], samples: int, seed: int) -> Relevance | None:
    """None where no SAE has survivors and casualties in the same quintile of firing rate."""
    saes = [sample for sae in saes if len((sample := balanced(sae, seed)).effect)]
    if not saes:
        return None
    groups = [(sae.effect[sae.survived], sae.effect[~sae.survived]) for sae in saes]
    survivors, casualties = (np.concatenate(group) for group in zip(*groups, strict=True))
    rhos = [rho for sae in saes if not np.isnan(rho := spearman(sae.effect, sae.survived))]
    return Relevance(
        survivors,
        casualties,
        rho=float(np.mean(rhos)) if rhos else float("nan"),
        delta=bootstrap_delta(groups, samples, seed),
        p=mann_whitney(survivors, casualties),
    )
