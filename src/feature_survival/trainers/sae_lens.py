"""The reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feature_survival.config import Sae
from feature_survival.models import compute_device
from feature_survival.trainers.trainer import LAST_RATE, START_NORM


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
