"""RQ1: how alike are two SAEs? For each feature of the first, its partner in the second, in three ways."""

from __future__ import annotations

import torch
from torch import Tensor

from feature_survival.matching import assigned, mutual_cosine, random_dictionary
from feature_survival.sae import Dictionary


def match(a: Dictionary, b: Dictionary, alive: Tensor) -> dict[str, Tensor]:
    """One number a feature of `a`, each float32 [d_sae].

    `mutual_cosine`: decoder cosine to the mutual nearest neighbour, -1 where it has none.
    `matched_cosine`: decoder cosine to the partner in the optimal one-to-one assignment of a's alive features
    (Hungarian); its mean is PW-MCC (arXiv 2505.20254). `matched_encoder_cosine`: encoder cosine to the same partner
    (Paulo & Belrose, arXiv 2501.16615, ask for both). NaN where a feature is not alive or finds no free partner.
    """
    matched, partner = assigned(a.W_dec[alive], b.W_dec)
    encoders = torch.nn.functional.cosine_similarity(a.W_enc.T[alive], b.W_enc.T[partner.clamp(min=0)], dim=1)
    columns = {
        "matched_cosine": matched,
        "matched_encoder_cosine": torch.where(partner < 0, torch.nan, encoders),
    }
    out = {"mutual_cosine": mutual_cosine(a.W_dec, b.W_dec)}
    for name, values in columns.items():
        out[name] = torch.full_like(out["mutual_cosine"], torch.nan)
        out[name][alive] = values
    return {name: values.cpu() for name, values in out.items()}


def random_sae(like: Dictionary, seed: int) -> Dictionary:
    """The floor of every matching: a random unit dictionary, its encoder the decoder's transpose."""
    decoder = random_dictionary(len(like.W_dec), len(like.b_dec), seed).to(like.W_dec)
    return Dictionary(decoder.T, torch.zeros_like(like.b_enc), decoder, torch.zeros_like(like.b_dec), like.k)
