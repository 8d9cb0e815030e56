"""RQ4: do rarely firing features survive more or less often, and is it their rarity or their shared starting point?"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata, spearmanr

from feature_survival.metrics.quintiles import BINS, quintiles
from feature_survival.stats import Estimate, auc, cluster_mean, cluster_replicates, interval, logistic, spearman


class Cluster(NamedTuple):
    """The alive features of one dense SAE."""

    values: np.ndarray  # [n]: firing rate, or displacement from initialisation
    survived: np.ndarray  # [n] in 0-1: share of the SAEs it is paired with in which the feature is found again


class Trend(NamedTuple):
    """Survival by quintile of the values, lowest first, and the tests of a trend."""

    quintiles: list[Estimate]
    means: list[float]  # of the values, by quintile
    gap: Estimate  # S(lowest quintile) - S(highest)
    rho_bins: float  # the published statistic: Spearman over the five bin means
    p_bins: float  # exact, two-sided; with five bins never below 1/60
    rho_features: float  # Spearman over features, mean over dense SAEs


def exact_spearman(y: np.ndarray) -> tuple[float, float]:
    """Spearman of y against 1..n and its exact two-sided p over all n! orders (n <= 8); NaN where y is constant."""
    if np.ptp(y) == 0:
        return float("nan"), float("nan")
    x = np.arange(1, len(y) + 1)
    rho = float(spearmanr(x, y).statistic)
    ranks = rankdata(y)
    null = [np.corrcoef(x, order)[0, 1] for order in permutations(ranks)]
    return rho, float(np.mean(np.abs(null) >= abs(rho) - 1e-12))


def _within_quintiles(
    values: list[np.ndarray], outcomes: list[np.ndarray], samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean outcomes [5, m] by quintile of the values, and their bootstrap replicates [5, samples, m]."""
    fewest = min(len(of_sae) for of_sae in values)
    if fewest < BINS:
        raise ValueError(f"quintiles need at least {BINS} alive features an SAE, found {fewest}")
    bins = [quintiles(of_sae) for of_sae in values]
    means, replicates = [], []
    for number in range(BINS):
        within = [outcome[of == number] for outcome, of in zip(outcomes, bins, strict=True)]
        means.append(cluster_mean(within))
        replicates.append(cluster_replicates(within, samples, seed, stream=number))
    return np.array(means), np.array(replicates)


def measure_trend(clusters: list[Cluster], samples: int, seed: int) -> Trend:
    """All statistics of one cell and pairing; intervals from the two-stage bootstrap over SAEs x features.

    ValueError where an SAE has fewer than five alive features.
    """
    values = [cluster.values for cluster in clusters]
    means, replicates = _within_quintiles(values, [cluster.survived[:, None] for cluster in clusters], samples, seed)
    means, replicates = means[:, 0], replicates[..., 0]
    rho_bins, p_bins = exact_spearman(np.round(means, 12))  # equal means may differ by rounding
    rhos = [rho for cluster in clusters if not np.isnan(rho := spearman(*cluster))]
    return Trend(
        quintiles=[interval(mean, drawn) for mean, drawn in zip(means, replicates, strict=True)],
        means=[float(np.mean([of[quintiles(of) == number].mean() for of in values])) for number in range(BINS)],
        gap=interval(means[0] - means[-1], replicates[0] - replicates[-1]),
        rho_bins=rho_bins,
        p_bins=p_bins,
        rho_features=float(np.mean(rhos)) if rhos else float("nan"),
    )


def measure_confound(displacement: list[np.ndarray], survived: list[np.ndarray], samples: int, seed: int) -> Estimate:
    """How much survival features owe to SAEs that share their starting weights.

    displacement [n] and survived [n, 2] of each dense SAE: survival in SAEs of the same and of another initialisation.
    The gap S(least displaced quintile) - S(most displaced) with the same initialisation, minus that with another one:
    positive where features survive because neither copy moved, zero where the start does not matter. ValueError where
    an SAE has fewer than five features.
    """
    means, replicates = _within_quintiles(displacement, survived, samples, seed)
    return interval(float(_confound(means)), _confound(replicates))


def _confound(means: np.ndarray) -> np.ndarray:
    """[5, ..., 2] -> [...]."""
    gap = means[0] - means[-1]
    return gap[..., 0] - gap[..., 1]


class Predictors(NamedTuple):
    """What foretells survival: a logistic regression over features of all SAEs, and each predictor alone."""

    coefficients: list[Estimate]  # log odds of survival per standard deviation; NaN for a constant predictor
    p: np.ndarray  # [p]
    auc: np.ndarray  # [p]: each predictor alone; 0.5 = it tells nothing, below: high values foretell loss
    auc_all: float  # of the regression on SAEs it was not fitted on, mean over SAEs; NaN where there is one only


def measure_predictors(predictors: list[np.ndarray], survived: list[np.ndarray]) -> Predictors:
    """predictors [n, p] and survival [n] in 0-1 of each dense SAE. A survivor is found in half of its SAEs or more."""
    stacked, outcome = np.concatenate(predictors), np.concatenate(survived)
    varies = np.ptp(stacked, axis=0) > 0
    centre, scale = stacked.mean(axis=0)[varies], stacked.std(axis=0)[varies]
    columns = [(x[:, varies] - centre) / scale for x in predictors]
    fit = logistic(np.concatenate(columns), outcome)
    estimates = [Estimate(float("nan"), float("nan"), float("nan"))] * len(varies)
    p = np.full(len(varies), np.nan)
    for number, position in enumerate(np.flatnonzero(varies)):
        estimates[position] = Estimate(*(float(part[number]) for part in (fit.coefficients, fit.low, fit.high)))
        p[position] = fit.p[number]
    aucs = []
    for left_out in range(len(columns) if len(columns) > 1 else 0):
        others = [number for number in range(len(columns)) if number != left_out]
        trained = logistic(
            np.concatenate([columns[number] for number in others]), np.concatenate([survived[n] for n in others])
        )
        aucs.append(_auc(columns[left_out] @ trained.coefficients, survived[left_out]))
    alone = np.array([_auc(stacked[:, number], outcome) for number in range(stacked.shape[1])])
    told = [area for area in aucs if not np.isnan(area)]  # NaN: an SAE of survivors only, or of casualties only
    return Predictors(estimates, p, alone, float(np.mean(told)) if told else float("nan"))


def _auc(score: np.ndarray, survived: np.ndarray) -> float:
    found = survived >= 0.5
    return float("nan") if np.isnan(score).any() else auc(score[found], score[~found])
