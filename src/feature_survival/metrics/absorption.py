"""Feature absorption on the first-letter task (Chanin et al., arXiv 2409.14507), as SAEBench scores it.

A letter's main latents should fire on every word that starts with it; where they do not and another latent (that of
the word itself, say) carries the letter's direction instead, the letter has been absorbed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feature_survival.metrics.probes import FEWEST, Probe, f1_score, fit_probe
from feature_survival.metrics.probing import mean_difference

# SAEBench's defaults
MOST_LATENTS = 10  # main latents of a letter
F1_JUMP = 0.03  # that the next main latent must add
LEAST_F1 = 0.6  # of the ground-truth probe, for the model to know the letter
ABSORBER_COSINE = 0.1  # of an absorbing latent to the probe, for the fraction
FULL_COSINE = 0.025  # likewise for full absorption
LEAST_SHARE = 0.4  # of the token's projection on the probe, carried by the absorbing latents
MOST_ABSORBERS = 3  # for the fraction
SILENT = 1e-8  # a code below does not fire


class Absorption(NamedTuple):
    """m letters, in ascending order; the means are over letters, NaN without one."""

    mean_fraction: float
    mean_full_rate: float
    letters: Tensor  # int64 [m]
    tokens: Tensor  # int64 [m]: test tokens of the letter that the ground-truth probe gets right
    fraction: Tensor  # float64 [m]: mean absorption fraction over these tokens
    full_rate: Tensor  # float64 [m]: share of these tokens with full absorption
    main_latents: tuple[tuple[int, ...], ...]  # of each letter, strongest first


@torch.no_grad()
def measure_absorption(
    sae_dec: Tensor,
    codes_fit: Tensor,
    codes_test: Tensor,
    x_test: Tensor,
    letters_fit: Tensor,
    letters_test: Tensor,
    probe: Probe,
) -> Absorption:
    """Absorption of first letters by one SAE; every row is a word, a token of a leading space and letters.

    sae_dec: [d_sae, d]; codes: [n, d_sae]; x_test: [n, d], what the codes are of; letters: int64 [n]; probe: of the
    letters on x of the fitting half. A letter counts if the probe gets `FEWEST` of its test tokens right and reaches
    F1 `LEAST_F1` on it: this depends on the model alone, so that all SAEs of a model are scored on the same tokens.
    """
    predicted = probe.predict(x_test)
    letters, tokens, fractions, full, mains = [], [], [], [], []
    for letter in letters_test.unique().tolist():
        of_letter = letters_test == letter
        rows = of_letter & (predicted == letter)
        if rows.sum() < FEWEST or f1_score(predicted == letter, of_letter) <= LEAST_F1 or letter not in letters_fit:
            continue
        main = _main_latents(codes_fit, codes_test, letters_fit == letter, of_letter)
        direction = probe.weight[letter] / probe.weight[letter].norm()
        fraction, fully = _absorbed(sae_dec.double(), codes_test[rows].double(), x_test[rows].double(), direction, main)
        letters.append(letter)
        tokens.append(len(fraction))
        fractions.append(fraction.mean())
        full.append(fully.double().mean())
        mains.append(tuple(main.tolist()))
    by_letter = torch.tensor([fractions, full], dtype=torch.float64)
    mean_fraction, mean_full_rate = by_letter.mean(1).tolist()
    return Absorption(
        mean_fraction,
        mean_full_rate,
        torch.tensor(letters, dtype=torch.long),
        torch.tensor(tokens, dtype=torch.long),
        by_letter[0],
        by_letter[1],
        tuple(mains),
    )


def _main_latents(codes_fit: Tensor, codes_test: Tensor, fit: Tensor, test: Tensor) -> Tensor:
    """The latents of the largest k-sparse probe up to which each latent raised the test F1 by more than `F1_JUMP`.

    Latents come in the order of their mean on the letter's tokens minus that on all others: only those that speak for
    the letter, strongest first (SAEBench: in the order of an L1 probe's weights).
    """
    order = mean_difference(codes_fit, fit, ~fit).topk(min(MOST_LATENTS, codes_fit.shape[1])).indices
    best, count = -1.0, 0
    for k in range(1, len(order) + 1):
        probe = fit_probe(codes_fit[:, order[:k]], fit.long(), 2, l2=1 / len(fit), balanced=True)
        score = f1_score(probe.predict(codes_test[:, order[:k]]) == 1, test)
        if score <= best + F1_JUMP:
            break
        best, count = score, k
    return order[:count]


def _absorbed(sae_dec: Tensor, codes: Tensor, x: Tensor, direction: Tensor, main: Tensor) -> tuple[Tensor, Tensor]:
    """Absorption fraction float64 [n] and full absorption bool [n] of n tokens on a letter's unit `direction` [d].

    With p the token's projection on the direction, p_main what the main latents contribute to it and p_other what the
    at most `MOST_ABSORBERS` largest others above `ABSORBER_COSINE` do: the fraction is absorbed / (absorbed + p_main)
    with absorbed = min(p_other, p - p_main); 1 where p_main <= 0; 0 where p_main >= p or p_other < `LEAST_SHARE` p.
    """
    along = sae_dec @ direction  # its cosine where decoder rows have unit length; those of a pruned SAE do not
    cosine = along / sae_dec.norm(dim=1).clamp(min=1e-12)
    parts, total = codes * along, x @ direction
    from_main = parts[:, main].sum(1)
    other = torch.where(cosine >= ABSORBER_COSINE, parts, 0.0).clamp(min=0)
    other[:, main] = 0
    from_other = other.topk(min(MOST_ABSORBERS, other.shape[1])).values.sum(1)
    absorbed = torch.minimum(from_other, total - from_main)
    fraction = torch.where(from_main > 0, absorbed / (absorbed + from_main), 1.0).clamp(0, 1)
    carried = (total > 0) & (from_main < total) & (from_other >= LEAST_SHARE * total)
    strongest, latent = parts.max(1)
    silent = (codes[:, main] < SILENT).all(1)
    full = silent & (total > 0) & (cosine[latent] >= FULL_COSINE) & (strongest >= LEAST_SHARE * total)
    return torch.where(carried, fraction, 0.0), full
