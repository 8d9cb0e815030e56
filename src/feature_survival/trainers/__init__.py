"""Training of TopK sparse autoencoders, several in one pass over the shards, stored in sae-lens's format.

Trainers of one loss (Gao et al., arXiv 2406.04093): `sparse`, ours, and `sae_lens`, that library's own, the reference.
A further one is a file and a line in `TRAINERS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_survival.activations import Normalization, Shards
from feature_survival.config import Sae, Seed
from feature_survival.models import compute_device
from feature_survival.progress import progress
from feature_survival.schema import InputError
from feature_survival.trainers.files import write_sae
from feature_survival.trainers.sae_lens import SaeLensTrainer
from feature_survival.trainers.sparse import SparseTrainer
from feature_survival.trainers.trainer import Trainer

TRAINERS: dict[str, type[Trainer]] = {"sparse": SparseTrainer, "sae_lens": SaeLensTrainer}


class Job(NamedTuple):
    """One SAE to be trained."""

    cfg: Sae
    seed: Seed
    folder: Path  # made by training


def train_saes(jobs: Sequence[Job], shards: Shards, normalization: Normalization, metadata: dict[str, object]) -> None:
    """Train SAEs on the same activations; those that see them in the same order share one pass over the shards.

    Each folder gets `cfg.json`, `sae_weights.safetensors`, and `movement.safetensors` with `cosine`, float32 [d_sae],
    of each decoder row to the row it started from. `seed.init` draws the weights, `seed.data` the order of tokens.
    InputError for more features or tokens a batch than there are, and where a loss or weight is no longer finite.
    """
    for cfg, _, _ in jobs:
        if len(shards) < cfg.batch_tokens:
            raise InputError(f"sae.batch_tokens: {cfg.batch_tokens} asked, the sae split has {len(shards)} tokens")
        if cfg.k > cfg.expansion * shards.width:
            raise InputError(f"sae.k: {cfg.k} asked, the SAE has {cfg.expansion * shards.width} features")

    def order(job: Job) -> tuple[int, int, int]:
        return job.cfg.batch_tokens, job.cfg.epochs, job.seed.data

    for key, group in groupby(sorted(jobs, key=order), order):
        _train_together(list(group), key, shards, normalization, metadata)


def _train_together(
    jobs: list[Job],
    order: tuple[int, int, int],
    shards: Shards,
    normalization: Normalization,
    metadata: dict[str, object],
) -> None:
    """Train SAEs that see the same batches; order: (tokens a batch, epochs, data seed)."""
    batch, epochs, data = order
    steps = len(shards) // batch * epochs
    trainers = [TRAINERS[cfg.trainer](cfg, shards.width, steps, seed.init) for cfg, seed, _ in jobs]
    mean, scale = normalization
    batches = token_batches(len(shards), *order)
    for step, rows in enumerate(progress(batches, f"{len(jobs)} SAEs, data{data}", steps, "step"), start=1):
        x = ((shards.gather(rows) - mean) / scale).to(compute_device())
        for job, trainer in zip(jobs, trainers, strict=True):
            loss = trainer.step(x)
            if not math.isfinite(loss):
                raise InputError(
                    f"stage sae: {job.seed.name}: loss is {loss} at step {step} of {steps}; lower sae.learning_rate"
                )
    for job, trainer in zip(jobs, trainers, strict=True):
        weights = trainer.weights()
        if not all(torch.isfinite(weight).all() for weight in weights.values()):
            raise InputError(
                f"stage sae: {job.seed.name}: weights are not finite after step {steps}; lower sae.learning_rate"
            )
        found = {"l0": trainer.fired.sum().item() / (steps * batch), "num_dead_features": trainer.dead()}
        cosine = F.cosine_similarity(trainer.start, weights["W_dec"], dim=1)
        write_sae(job.folder, job.cfg, job.seed, weights, cosine, normalization, {**metadata, **found})


def token_batches(rows: int, batch: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Row numbers int64 [batch], shuffled anew each epoch; an epoch's last incomplete batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator)
        yield from order[: rows // batch * batch].split(batch)
