"""What an SAE's latents say of the tokens: probing, absorption and disentanglement, on one split for all variants."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from feature_survival.catalogue import Site
from feature_survival.metrics.absorption import measure_absorption
from feature_survival.metrics.attributes import FIRST_LETTER, LEADING_SPACE, NONE, binary_tasks, most_frequent
from feature_survival.metrics.disentanglement import Interchange, measure_disentanglement, prepare_interchange
from feature_survival.metrics.probes import COARSE, Probe, fit_probe
from feature_survival.metrics.probing import measure_probing
from feature_survival.sae import Dictionary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KS = (1, 5)  # latents a sparse probe may read
LETTERS = 8  # first letters that are probed for, the most frequent ones
L2 = 1e-3  # of the ground-truth probe of first letters


class Half(NamedTuple):
    """The fitting or the testing half of the tokens."""

    x: Tensor  # float32 [n, d_in]: activations at the site
    tasks: dict[str, Tensor]  # int64 [n]: 0, 1 or NONE
    letters: Tensor  # int64 [n]: first letter of words, tokens of a space and a letter first; NONE elsewhere

    @property
    def words(self) -> Tensor:
        """Bool [n]: which tokens are words."""
        return self.letters != NONE


class Labelled(NamedTuple):
    """Prepared once for a compressed model and site; every SAE is measured on it."""

    fit: Half
    test: Half
    mean: Tensor  # float32 [d_in]: what the projections of absorption are counted from
    probe: Probe  # of first letters, on x - mean of the fitting half's words
    interchange: Interchange


@torch.no_grad()
def prepare(
    model: PreTrainedModel, site: Site, tokens: Tensor, attributes: Mapping[str, Tensor], mean: Tensor, batch: int
) -> Labelled:
    """Label the tokens of windows int64 [windows, position], the first half to fit and the second to test.

    attributes: int64 labels [vocabulary] by name, see `token_attributes`. Position 0 is left out.
    """
    fit = torch.arange(len(tokens)) < len(tokens) // 2
    interchange = prepare_interchange(model, site, tokens, fit, attributes, batch=batch)
    mean = mean.to(interchange.x_fit.device)
    letters = most_frequent(attributes[FIRST_LETTER][tokens[fit][:, 1:]].flatten(), LETTERS)

    def half(windows: Tensor, x: Tensor) -> Half:
        found = {name: labels[tokens[windows][:, 1:].flatten()].to(x.device) for name, labels in attributes.items()}
        word = (found[LEADING_SPACE] == 1) & (found[FIRST_LETTER] != NONE)
        return Half(x, binary_tasks(found, letters), torch.where(word, found[FIRST_LETTER], NONE))

    halves = half(fit, interchange.x_fit), half(~fit, interchange.x_test)
    words = halves[0].words
    probe = fit_probe(halves[0].x[words] - mean, halves[0].letters[words], len(ascii_lowercase), L2, tolerance=COARSE)
    return Labelled(*halves, mean, probe, interchange)


@torch.no_grad()
def measure_meaning(model: PreTrainedModel, labelled: Labelled, sae: Dictionary) -> dict[str, float]:
    """All scores of one SAE by the names of their columns, on the model that `labelled` was prepared on."""
    fit, test = (sae.codes(half.x) for half in labelled[:2])
    probing = measure_probing(fit, test, labelled.fit.tasks, labelled.test.tasks, KS)
    absorption = measure_absorption(
        sae.W_dec,
        fit[labelled.fit.words],
        test[labelled.test.words],
        labelled.test.x[labelled.test.words] - labelled.mean,
        labelled.fit.letters[labelled.fit.words],
        labelled.test.letters[labelled.test.words],
        labelled.probe,
    )
    interchange = measure_disentanglement(model, labelled.interchange, sae, fit)
    return {
        **{f"probing_{k}": accuracy for k, accuracy in probing.accuracy.items()},
        "n_tasks": len(probing.by_task),
        "absorption": absorption.mean_fraction,
        "absorption_full": absorption.mean_full_rate,
        "n_letters": len(absorption.letters),
        "cause": interchange.cause,
        "isolation": interchange.isolation,
        "disentanglement": interchange.score,
        "n_attributes": len(interchange.by_attribute),
    }
