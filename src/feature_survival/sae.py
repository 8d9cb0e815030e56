"""Stage `sae`: TopK sparse autoencoders, trained by sae-lens and stored in its format.

Training happens on normalised activations; the normalisation is then folded into the weights, exactly, so that
a stored SAE takes the model's raw activations and its decoder rows keep unit norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from feature_survival.activations import Normalization, Shards
from feature_survival.artifacts import read_json, read_tensors, write_json
from feature_survival.config import Sae, Seed
from feature_survival.models import compute_device
from feature_survival.progress import progress
from feature_survival.schema import InputError

ROWS = 16384  # activations encoded at a time


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


def token_batches(rows: int, batch: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Row numbers int64 [batch], shuffled anew each epoch; an epoch's last incomplete batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator)
        yield from order[: rows // batch * batch].split(batch)


def train_sae(
    cfg: Sae, shards: Shards, normalization: Normalization, seed: Seed, metadata: dict[str, object], folder: Path
) -> None:
    """Train one SAE and write `cfg.json` and `sae_weights.safetensors` to `folder`, and how far each feature moved.

    `seed.init` draws the weights, `seed.data` the order of tokens; `movement.safetensors` holds `cosine`, float32
    [d_sae]: of each decoder row to the row it started from. Raises InputError naming the step where the
    loss is no longer finite.
    """
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    if len(shards) < cfg.batch_tokens:
        raise InputError(f"sae.batch_tokens: {cfg.batch_tokens} asked, the sae split has {len(shards)} tokens")
    if cfg.k > cfg.expansion * shards.width:
        raise InputError(f"sae.k: {cfg.k} asked, the SAE has {cfg.expansion * shards.width} features")
    device = compute_device()
    torch.manual_seed(seed.init)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=shards.width,
            d_sae=cfg.expansion * shards.width,
            k=cfg.k,
            aux_loss_coefficient=cfg.auxiliary_coefficient,
            apply_b_dec_to_input=False,
            device=str(device),
            metadata=SAEMetadata(**metadata, init_seed=seed.init, data_seed=seed.data),
        )
    )
    start = sae.W_dec.detach().clone()
    steps = len(shards) // cfg.batch_tokens * cfg.epochs
    trainer_config = SAETrainerConfig(
        total_training_samples=steps * cfg.batch_tokens,
        train_batch_size_samples=cfg.batch_tokens,
        lr=cfg.learning_rate,
        lr_end=cfg.learning_rate / 10,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=cfg.warmup_steps,
        dead_feature_window=cfg.dead_after_steps,
        device=str(device),
        logger=LoggingConfig(log_to_wandb=False),
    )
    mean, scale = normalization
    trainer = SAETrainer(trainer_config, sae, iter(()))  # batches are handed to its steps below
    batches = token_batches(len(shards), cfg.batch_tokens, cfg.epochs, seed.data)
    for step, rows in enumerate(progress(batches, f"sae {seed.name}", steps, "step"), start=1):
        loss = trainer.step((shards.gather(rows) - mean) / scale).loss.item()
        if not math.isfinite(loss):
            raise InputError(
                f"stage sae: {seed.name}: loss is {loss} at step {step} of {steps}; lower sae.learning_rate"
            )
        trainer.n_training_steps = step
    if not all(torch.isfinite(weight).all() for weight in sae.parameters()):
        raise InputError(f"stage sae: {seed.name}: weights are not finite after step {steps}; lower sae.learning_rate")
    trainer.set_final_sae_metadata()
    sae.fold_W_dec_norm()
    state = fold_normalization({name: tensor.cpu() for name, tensor in sae.state_dict().items()}, normalization)
    # Matrices in half precision, biases (which hold the model's mean) in full; sae-lens loads both as float32.
    half = {name: (tensor.half() if tensor.ndim == 2 else tensor).contiguous() for name, tensor in state.items()}
    folder.mkdir(parents=True)
    save_file(half, folder / "sae_weights.safetensors")
    save_file({"cosine": F.cosine_similarity(start, sae.W_dec.detach(), dim=1).cpu()}, folder / "movement.safetensors")
    write_json(folder / "cfg.json", sae.cfg.get_inference_sae_cfg_dict())


def read_movement(folder: Path) -> Tensor:
    """Cosine of each decoder row to the row it started from, float32 [d_sae]."""
    return read_tensors(folder / "movement.safetensors", ["cosine"])["cosine"]


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
