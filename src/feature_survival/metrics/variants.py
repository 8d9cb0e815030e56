"""Study B: variants of a dense model's SAE that may explain a compressed model, and what pruning takes from an SAE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from feature_survival.activations import Normalization
from feature_survival.compression.masks import masks_in_groups
from feature_survival.compression.scores import SCORES
from feature_survival.metrics import BOTH, DECODER, ENCODER, PRETRAINED, PRUNED
from feature_survival.metrics.reconstruction import Reconstruction, alive
from feature_survival.sae import Dictionary


class Variant(NamedTuple):
    """One SAE on a compressed model."""

    sae: str  # STANDARD, RELEASED, or a name of `variants.redundancy`
    kind: str  # PRETRAINED, RETRAINED or PRUNED
    seed: str
    score: str = ""  # the others: of a pruned one
    part: str = ""
    level: float = 0.0


class Norms(NamedTuple):
    """What the Wanda score of an SAE's weights reads, over the tokens it is calibrated on."""

    inputs: Tensor  # float32 [d_in]: L2 norm of each input, normalised as the SAE was trained
    codes: Tensor  # float32 [d_sae]: L2 norm of each latent's activation


def measure_norms(sae: Dictionary, normalization: Normalization, batches: Iterable[Tensor]) -> Norms:
    """Norms over activation batches [n, d_in]."""
    mean, scale = (torch.as_tensor(part, device=sae.W_enc.device) for part in normalization)
    inputs, codes = (torch.zeros(n, dtype=torch.float64, device=sae.W_enc.device) for n in sae.W_enc.shape)
    for batch in batches:
        x = batch.to(sae.W_enc.device)
        values, features = sae.encode(x)
        inputs += ((x - mean) / scale).double().square().sum(0)
        codes.index_add_(0, features.flatten(), values.flatten().double().square())
    return Norms(inputs.sqrt().float(), codes.sqrt().float())


def prune_sae(
    sae: Dictionary, normalization: Normalization, norms: Norms, score: str, sparsity: float, group: str, part: str
) -> Dictionary:
    """An SAE whose encoder, decoder or both lose their lowest-scored weights (METHODS.md section 6).

    Both are pruned as linear maps are, [out, in]: the encoder by `|W_enc_ij| ||x_i||`, compared within a latent where
    `group` is row; the decoder by `|W_dec_ij| ||a_i||`, within an output. Nothing is renormalised and no bias changed:
    as the encoder reads (x - mean) / scale, the share of the folded bias that stands for the mean follows the weights.
    """
    of = SCORES[score].of
    encoder, decoder = sae.W_enc, sae.W_dec
    if part in (BOTH, ENCODER):
        encoder = encoder * masks_in_groups(of(encoder.T, norms.inputs), sparsity, group).T
    if part in (BOTH, DECODER):
        decoder = decoder * masks_in_groups(of(decoder.T, norms.codes), sparsity, group).T
    bias = sae.b_enc + normalization.mean.to(encoder.device) @ (sae.W_enc - encoder)
    return sae._replace(W_enc=encoder, b_enc=bias, W_dec=decoder)


def neighbour_cosine(decoder: Tensor, chunk: int = 4096) -> Tensor:
    """Highest cosine of each row [d_sae, d_in] to another one, float32 [d_sae]: how much of it the others could say."""
    rows = F.normalize(decoder.float(), dim=1)
    best = []
    for start in range(0, len(rows), chunk):
        cosine = rows[start : start + chunk] @ rows.T
        cosine.diagonal(start).fill_(-torch.inf)
        best.append(cosine.max(dim=1).values)
    return torch.cat(best)


def share_left(pruned: Tensor, whole: Tensor) -> Tensor:
    """Share of each row's squared norm that pruning left, [rows]."""
    return pruned.double().square().sum(1) / whole.double().square().sum(1)


def latents_left(
    condition: str, saes: Mapping[Variant, Dictionary], found: Mapping[Variant, Reconstruction], tokens: int
) -> pd.DataFrame:
    """Every alive latent: how often and strongly it fires, how near its neighbours are, what pruning leaves of it.

    saes: a pretrained one, and what it was pruned to (others are passed over); found: on one set of `tokens`
    activations. One row a latent that is alive on them and a pruned SAE.
    """
    pretrained = next(variant for variant in saes if variant.kind == PRETRAINED)
    sae, whole = saes[pretrained], found[pretrained]
    lives = alive(whole.firing_rate, tokens)
    neighbour, norm = neighbour_cosine(sae.W_dec).cpu(), sae.W_enc.norm(dim=0).cpu()
    tables = []
    for variant, smaller in saes.items():
        if variant.kind != PRUNED:
            continue
        columns = {
            "latent": torch.arange(len(lives)),
            "firing_rate": whole.firing_rate,
            "mean_activation": whole.mean_activation,
            "encoder_norm": norm,
            "neighbour_cosine": neighbour,
            "decoder_left": share_left(smaller.W_dec, sae.W_dec).cpu(),
            "encoder_left": share_left(smaller.W_enc.T, sae.W_enc.T).cpu(),
            "firing_rate_pruned": found[variant].firing_rate,
        }
        frame = pd.DataFrame({name: values[lives].numpy() for name, values in columns.items()})
        tables.append(frame.assign(condition=condition, score=variant.score, level=variant.level))
    return pd.concat(tables)
