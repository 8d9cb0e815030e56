"""Stage `sae`: TopK sparse autoencoders, several in one pass over the shards, stored in sae-lens's format.

Two trainers of the same loss (Gao et al., arXiv 2406.04093): `sparse`, ours, touches what the k active features touch;
`sae_lens` is that library's own, the reference. Training happens on normalised activations; the normalisation is then
folded into the weights, exactly, so that a stored SAE takes the model's raw activations and its decoder rows keep unit
norm.
"""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from feature_survival.activations import Normalization, Shards
from feature_survival.artifacts import write_json
from feature_survival.config import Sae, Seed
from feature_survival.models import compute_device
from feature_survival.progress import progress
from feature_survival.schema import InputError

START_NORM = 0.1  # of decoder rows; encoder columns start as these rows
LAST_RATE = 0.1  # of the learning rate, to which it falls by a half cosine
LONGEST_GRADIENT = 1.0  # over all weights


class Job(NamedTuple):
    """One SAE to be trained."""

    cfg: Sae
    seed: Seed
    folder: Path  # made by training


class Trainer(Protocol):
    """One SAE in training."""

    start: Tensor  # float32 [d_sae, d_in]: decoder rows before the first step

    @property
    def fired(self) -> Tensor:
        """On how many of the tokens so far, [d_sae]."""
        ...

    def __init__(self, cfg: Sae, width: int, steps: int, init: int) -> None: ...

    def step(self, x: Tensor) -> float:
        """One step on normalised activations [n, d_in]; returns the loss."""
        ...

    def dead(self) -> int:
        """Features that have not fired for `dead_after_steps`."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """By sae-lens's names; decoder rows of unit norm."""
        ...


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
        state = fold_normalization({name: weight.cpu() for name, weight in weights.items()}, normalization)
        job.folder.mkdir(parents=True)
        # Matrices in half precision, biases (which hold the model's mean) in full; sae-lens loads both as float32.
        half = {name: (tensor.half() if tensor.ndim == 2 else tensor).contiguous() for name, tensor in state.items()}
        save_file(half, job.folder / "sae_weights.safetensors")
        moved = F.cosine_similarity(trainer.start, weights["W_dec"], dim=1)
        save_file({"cosine": moved.cpu()}, job.folder / "movement.safetensors")
        write_json(job.folder / "cfg.json", configuration(job, shards.width, {**metadata, **found}))


def token_batches(rows: int, batch: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Row numbers int64 [batch], shuffled anew each epoch; an epoch's last incomplete batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator)
        yield from order[: rows // batch * batch].split(batch)


def configuration(job: Job, width: int, metadata: dict[str, object]) -> dict[str, object]:
    """What sae-lens reads of an SAE in `cfg.json`; written without importing it (seconds of start-up)."""
    return {
        "architecture": "topk",
        "k": job.cfg.k,
        "d_in": width,
        "d_sae": job.cfg.expansion * width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "rescale_acts_by_decoder_norm": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            **metadata,
            "init_seed": job.seed.init,
            "data_seed": job.seed.data,
            "trainer": job.cfg.trainer,
            "sae_lens_version": importlib.metadata.version("sae-lens"),
        },
    }


def fold_normalization(state: dict[str, Tensor], normalization: Normalization) -> dict[str, Tensor]:
    """Weights that act on raw x exactly as `state` acts on (x - mean) / scale, activations scaled by `scale`.

    With x = scale * z + mean: TopK picks the same features (it is invariant to a positive scale) and decoder
    rows are unchanged.
    """
    mean, scale = normalization
    return {
        "W_enc": state["W_enc"],
        "b_enc": scale * state["b_enc"] - mean @ state["W_enc"],
        "W_dec": state["W_dec"],
        "b_dec": scale * state["b_dec"] + mean,
    }


def learning_rate(cfg: Sae, step: int, steps: int) -> float:
    """Of step 0, 1, ...: a linear warm-up, then a half cosine down to `LAST_RATE` of the whole."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    done = (step - cfg.warmup_steps) / (steps - cfg.warmup_steps)
    return cfg.learning_rate * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2)


class SparseTrainer:
    """One dense product a step, that of the encoder: all else costs k features a token, not d_sae.

    The k largest of u_i ||d_i|| are active, u = W_enc x + b_enc, each by relu(u_i): the decoder's norm chooses and then
    cancels, so that no gradient passes through it. Features that have been silent for long learn the error that is left
    (AuxK: at most d_in / 2 of them a token).
    """

    def __init__(self, cfg: Sae, width: int, steps: int, init: int) -> None:
        self._cfg, self._steps, self._done = cfg, steps, 0
        torch.manual_seed(init)
        rows = nn.init.kaiming_uniform_(torch.empty(cfg.expansion * width, width, device=compute_device()))
        rows = rows / rows.norm(dim=1, keepdim=True) * START_NORM
        self.start = rows.clone()
        self._decoder, self._encoder = rows, rows.clone()  # the encoder lies transposed, as the decoder does
        self._b_enc, self._b_dec = rows.new_zeros(len(rows)), rows.new_zeros(width)
        self._weights = [self._encoder, self._b_enc, self._decoder, self._b_dec]
        self._optimizer = torch.optim.Adam(self._weights, fused=True)
        self.fired = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        self._silent = torch.zeros_like(self.fired)  # steps since a feature fired

    def step(self, x: Tensor) -> float:
        """One step on normalised activations [n, d_in]; returns the loss."""
        with torch.no_grad():
            before = torch.addmm(self._b_enc, x, self._encoder.T)
            strength = before * self._decoder.norm(dim=1)
            features = strength.topk(self._cfg.k, dim=1, sorted=False).indices
            values = before.gather(1, features).relu()
        values.requires_grad_()
        decoded = F.embedding_bag(features, self._decoder, per_sample_weights=values, mode="sum")
        error = decoded.detach() + self._b_dec - x
        slope = error * (2 / len(x))
        (of_values,) = torch.autograd.grad(decoded, values, slope)
        with torch.no_grad():
            loss = error.square().sum() / len(x)
            active = values > 0
            of_values *= active
            transpose = _Transpose(features, len(self._decoder))
            gradients = [
                transpose(of_values) @ x,
                torch.zeros_like(self._b_enc).index_add_(0, features.flatten(), of_values.flatten()),
                transpose(values.detach()) @ slope,
                slope.sum(0),
            ]
            if self._cfg.auxiliary_coefficient and self.dead():
                loss += self._revive(x, before, strength, error, gradients)
            count = torch.bincount(features[active], minlength=len(self.fired))
            self.fired += count
            self._silent = torch.where(count > 0, 0, self._silent + 1)
        self._update(gradients)
        return loss.item()

    def _revive(self, x: Tensor, before: Tensor, strength: Tensor, error: Tensor, gradients: list[Tensor]) -> Tensor:
        """AuxK: the loss of dead features that reconstruct -error; their gradients are added to `gradients`."""
        dead = (self._silent > self._cfg.dead_after_steps).nonzero()[:, 0]
        most = x.shape[1] // 2
        weight = self._cfg.auxiliary_coefficient * min(len(dead) / most, 1) / len(x)
        rows, codes, used = self._decoder[dead], before[:, dead], torch.ones_like(before[:, dead])
        if len(dead) > most:
            chosen = strength[:, dead].topk(most, dim=1, sorted=False).indices
            used = torch.zeros_like(codes).scatter_(1, chosen, 1)
        codes = codes * used
        missed = codes @ rows + error
        slope = missed * (2 * weight)
        of_codes = slope @ rows.T * used
        for gradient, of in zip(gradients, (of_codes.T @ x, of_codes.sum(0), codes.T @ slope), strict=False):
            gradient.index_add_(0, dead, of)
        return missed.square().sum() * weight

    def _update(self, gradients: list[Tensor]) -> None:
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(self._weights, LONGEST_GRADIENT)
        self._optimizer.param_groups[0]["lr"] = learning_rate(self._cfg, self._done, self._steps)
        self._optimizer.step()
        self._done += 1

    def dead(self) -> int:
        """Features that have not fired for `dead_after_steps`."""
        return int((self._silent > self._cfg.dead_after_steps).sum())

    def weights(self) -> dict[str, Tensor]:
        """By sae-lens's names; decoder rows of unit norm."""
        norm = self._decoder.norm(dim=1)
        return {
            "W_enc": self._encoder.T * norm,
            "b_enc": self._b_enc * norm,
            "W_dec": self._decoder / norm[:, None],
            "b_dec": self._b_dec,
        }


class _Transpose:
    """Codes of n tokens as sparse matrices [d_sae, n], whichever values the active features have."""

    def __init__(self, features: Tensor, d_sae: int) -> None:
        ordered, self._order = features.flatten().sort(stable=True)
        self._starts = torch.searchsorted(ordered, torch.arange(d_sae + 1, device=features.device))
        self._tokens, self._shape = self._order // features.shape[1], (d_sae, len(features))

    def __call__(self, values: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                self._starts, self._tokens, values.flatten()[self._order], self._shape, check_invariants=False
            )


class SaeLensTrainer:
    """sae-lens's own trainer, a step at a time."""

    def __init__(self, cfg: Sae, width: int, steps: int, init: int) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        device = str(compute_device())
        torch.manual_seed(init)
        self._sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(
                d_in=width,
                d_sae=cfg.expansion * width,
                k=cfg.k,
                aux_loss_coefficient=cfg.auxiliary_coefficient,
                decoder_init_norm=START_NORM,
                apply_b_dec_to_input=False,
                device=device,
            )
        )
        self.start = self._sae.W_dec.detach().clone()
        settings = SAETrainerConfig(
            total_training_samples=steps * cfg.batch_tokens,
            train_batch_size_samples=cfg.batch_tokens,
            lr=cfg.learning_rate,
            lr_end=cfg.learning_rate * LAST_RATE,
            lr_scheduler_name="cosineannealing",
            lr_warm_up_steps=cfg.warmup_steps,
            dead_feature_window=cfg.dead_after_steps,
            device=device,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self._trainer: Any = SAETrainer(settings, self._sae, iter(()))  # batches are handed to its steps

    @property
    def fired(self) -> Tensor:
        """On how many of the tokens so far, [d_sae]."""
        found: Tensor = self._trainer.act_freq_scores
        return found

    def step(self, x: Tensor) -> float:
        """One step on normalised activations [n, d_in]; returns the loss."""
        loss: float = self._trainer.step(x).loss.item()
        self._trainer.n_training_steps += 1
        return loss

    def dead(self) -> int:
        """Features that have not fired for `dead_after_steps`."""
        return int(self._trainer.dead_neurons.sum())

    def weights(self) -> dict[str, Tensor]:
        """By sae-lens's names; decoder rows of unit norm."""
        self._sae.fold_W_dec_norm()
        return {name: weight.detach() for name, weight in self._sae.state_dict().items()}


TRAINERS: dict[str, type[Trainer]] = {"sparse": SparseTrainer, "sae_lens": SaeLensTrainer}
