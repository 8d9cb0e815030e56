"""k-sparse probing (Gurnee et al., arXiv 2305.01610), as SAEBench scores it: how well few latents tell an attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from feature_survival.metrics.attributes import NONE
from feature_survival.metrics.probes import FEWEST, fit_probe


class Probing(NamedTuple):
    """Test accuracy, chance being 1/2."""

    accuracy: dict[int, float]  # by k: mean over tasks; NaN without a task
    by_task: dict[str, dict[int, float]]


def mean_difference(codes: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean code over one set of rows minus that over another, [d_sae]; codes [n, d_sae], rows int64 or bool [n]."""
    weights = codes.new_zeros(2, len(codes))
    weights[0, positive], weights[1, negative] = 1, 1
    first, second = weights / weights.sum(1, keepdim=True) @ codes
    return first - second


def rank_latents(codes: Tensor, labels: Tensor, count: int) -> Tensor:
    """The `count` latents, int64, that tell an attribute's classes apart best; strongest first.

    codes: [n, d_sae]; labels: int64 [n], rows of NONE left out. A latent's strength is how far apart its means over
    the classes lie, in units of its standard deviation over all tokens; one that never varies comes last.
    """
    has = labels != NONE
    if not has.all():
        codes, labels = codes[has], labels[has]
    members = (labels == labels.unique()[:, None]).to(codes.dtype)
    means = members / members.sum(1, keepdim=True) @ codes
    strength = (means.amax(0) - means.amin(0)) / codes.std(0, correction=0).clamp(min=1e-12)
    return strength.argsort(descending=True, stable=True)[:count]


def measure_probing(
    codes_fit: Tensor,
    codes_test: Tensor,
    tasks_fit: Mapping[str, Tensor],
    tasks_test: Mapping[str, Tensor],
    ks: Sequence[int],
    seed: int = 0,
) -> Probing:
    """Logistic probes on the k latents whose mean differs most between a task's two classes, either way.

    codes: [n, d_sae] of one SAE; tasks: int64 [n] of 0, 1, or NONE. Both halves of a task are balanced: the larger
    class is subsampled, the same way for every SAE. Latents and probes come from the fitting half. A task with fewer
    than `FEWEST` tokens of a class in either half is left out.
    """
    by_task: dict[str, dict[int, float]] = {}
    for name in tasks_fit:
        fit, test = (_balanced(tasks[name], seed) for tasks in (tasks_fit, tasks_test))
        if min(len(fit), len(test)) < 2 * FEWEST:
            continue
        y_fit, y_test = tasks_fit[name][fit], tasks_test[name][test]
        difference = mean_difference(codes_fit, fit[y_fit == 1], fit[y_fit == 0])
        order = difference.abs().argsort(descending=True, stable=True)
        by_task[name] = {}
        for k in ks:
            probe = fit_probe(codes_fit[fit[:, None], order[:k]], y_fit, 2, l2=1 / len(fit))
            right = probe.predict(codes_test[test[:, None], order[:k]]) == y_test
            by_task[name][k] = right.double().mean().item()
    mean = {k: fmean(found[k] for found in by_task.values()) if by_task else float("nan") for k in ks}
    return Probing(mean, by_task)


def _balanced(labels: Tensor, seed: int) -> Tensor:
    """Rows int64, as many of label 0 as of label 1, in ascending order."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(labels == label).nonzero()[:, 0] for label in (0, 1)]
    fewest = min(map(len, rows))
    drawn = [of[torch.randperm(len(of), generator=generator)[:fewest].to(of.device)] for of in rows]
    return torch.cat(drawn).sort().values
