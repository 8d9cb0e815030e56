"""A stored sparse autoencoder: what it makes of activations."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_survival.artifacts import read_json, read_tensors
from feature_survival.models import compute_device
from feature_survival.schema import InputError

ROWS = 16384  # activations encoded at a time
CHUNK = 1024  # activations whose codes are held as dense rows, float32 [rows, d_sae]


class Dictionary(NamedTuple):
    """An SAE's inference weights. Reads SAELens's files without importing sae-lens (seconds of start-up).

    TopK where `k` is given; else JumpReLU, and with thresholds of zero ReLU ("standard").
    """

    W_enc: Tensor  # [d_in, d_sae]
    b_enc: Tensor  # [d_sae]
    W_dec: Tensor  # [d_sae, d_in]; unit rows in those trained here
    b_dec: Tensor  # [d_in]
    k: int | None
    threshold: Tensor | None = None  # [d_sae]; a feature is active above it

    @classmethod
    def read(cls, folder: Path, width: int | None = None) -> Dictionary:
        """float32 weights on the compute device, with what the configuration asks for folded into them.

        InputError for another architecture, a broken file, or an SAE of other inputs than the site's `width`, if given.
        """
        config = read_json(folder / "cfg.json")
        if not isinstance(config, dict):
            raise InputError(f"{folder / 'cfg.json'}: a {type(config).__name__}; allowed: settings by name")
        for key, allowed in (("architecture", ("topk", "jumprelu", "standard")), ("normalize_activations", ("none",))):
            if config.get(key) not in allowed:
                raise InputError(f"{folder / 'cfg.json'}: {key} is {config.get(key)!r}; allowed: {', '.join(allowed)}")
        k = config.get("k") if config["architecture"] == "topk" else None
        if config["architecture"] == "topk" and not isinstance(k, int):
            raise InputError(f"{folder / 'cfg.json'}: k is {k!r}; allowed: a number of features")
        thresholds = ["threshold"] if config["architecture"] == "jumprelu" else []
        weights = read_tensors(folder / "sae_weights.safetensors", [*cls._fields[:4], *thresholds])
        if width is not None and weights["W_enc"].shape[0] != width:
            raise InputError(
                f"{folder / 'sae_weights.safetensors'}: the SAE reads {weights['W_enc'].shape[0]} inputs, "
                f"the site has {width}; allowed: an SAE of {width} inputs"
            )
        W_enc, b_enc, W_dec, b_dec = (weights[name].float() for name in cls._fields[:4])
        norm = W_dec.norm(dim=1)
        # Rows that are unit but for half precision's rounding are so meant.
        if config.get("rescale_acts_by_decoder_norm") and (norm - 1).abs().max() > 1e-2:
            W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm[:, None].clamp_min(1e-12)
        if config.get("apply_b_dec_to_input"):
            b_enc = b_enc - b_dec @ W_enc
        threshold = None if k is not None else weights["threshold"].float() if thresholds else torch.zeros_like(b_enc)
        return cls(W_enc, b_enc, W_dec, b_dec, k, threshold).to(compute_device())

    def to(self, device: torch.device | str) -> Dictionary:
        """The same on another device."""
        threshold = None if self.threshold is None else self.threshold.to(device)
        W_enc, b_enc, W_dec, b_dec = (weight.to(device) for weight in self[:4])
        return Dictionary(W_enc, b_enc, W_dec, b_dec, self.k, threshold)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, d_in] -> activations float [n, k] (>= 0) and feature numbers int64 [n, k].

        Where the SAE has thresholds, k is the most features that are active at once; those that are not stand as 0.
        """
        before = x @ self.W_enc + self.b_enc
        if self.threshold is None:
            assert self.k is not None
            values, features = before.topk(self.k, dim=-1, sorted=False)
            return values.relu(), features
        active = torch.where(before > self.threshold, before, 0).relu()
        most = int((active > 0).sum(-1).max()) if len(x) else 0
        values, features = active.topk(max(1, most), dim=-1, sorted=False)
        return values, features

    def codes(self, x: Tensor) -> Tensor:
        """x [n, d_in] -> all features' activations [n, d_sae]."""
        values, features = self.encode(x)
        return values.new_zeros(len(x), len(self.b_enc)).scatter_(1, features, values)

    def decode(self, values: Tensor, features: Tensor) -> Tensor:
        """Reconstruction [n, d_in] of what `encode` returned."""
        return F.embedding_bag(features, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> its reconstruction, same shape."""
        flat = x.flatten(0, -2)
        return self.decode(*self.encode(flat)).view_as(x)


def read_movement(folder: Path) -> Tensor:
    """Cosine of each decoder row to the row it started from, float32 [d_sae]."""
    return read_tensors(folder / "movement.safetensors", ["cosine"])["cosine"]
