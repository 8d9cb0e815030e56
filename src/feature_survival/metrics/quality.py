"""RQ3: how good SAEs are on a model: what they leave of its activations, and what it predicts with them spliced in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from feature_survival.catalogue import Site
from feature_survival.metrics.language import loss_recovered, measure_splices
from feature_survival.metrics.reconstruction import Reconstruction
from feature_survival.sae import Dictionary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Name = TypeVar("Name", bound=Hashable)


class Quality(NamedTuple):
    """One SAE, by the names of its columns in every table."""

    fvu: float
    l0: float
    share_dead: float
    ce_sae: float  # cross-entropy with it spliced in, nats
    ce_loss_score: float
    kl: float  # nats


class Compared(NamedTuple, Generic[Name]):
    """SAEs on one model, between two bounds: mean cross-entropies of the spliced tokens, in nats."""

    plain: float  # of the model alone
    zero: float  # with zeros at the site
    saes: dict[Name, Quality]


def measure_quality(
    model: PreTrainedModel,
    site: Site,
    saes: Mapping[Name, Dictionary],
    found: Mapping[Name, Reconstruction],
    tokens: Tensor,
    batch: int,
) -> Compared[Name]:
    """Splice each SAE into the model. found: what it leaves of the model's activations; tokens, batch: as of
    `measure_splices`."""
    replacements: dict[Name | None, Callable[[Tensor], Tensor]] = {None: torch.zeros_like}
    replacements |= {name: sae.reconstruct for name, sae in saes.items()}
    plain, splices = measure_splices(model, site, replacements, tokens, batch)
    zero = splices.pop(None).cross_entropy
    qualities = {}
    for name, splice in splices.items():
        assert name is not None
        of, score = found[name], loss_recovered(plain, zero, splice.cross_entropy)
        qualities[name] = Quality(of.fvu, of.l0, of.share_dead, splice.cross_entropy, score, splice.kl)
    return Compared(plain, zero, qualities)
