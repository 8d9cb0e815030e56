"""Our trainer: a step costs what the active features cost, but for the product that finds them."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_survival.config import Sae
from feature_survival.models import compute_device
from feature_survival.trainers.trainer import LONGEST_GRADIENT, START_NORM, learning_rate


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
            dead = self._is_dead().nonzero()[:, 0]
            if self._cfg.auxiliary_coefficient and len(dead):
                loss += self._revive(dead, x, before, strength, error, gradients)
            count = torch.bincount(features[active], minlength=len(self.fired))
            self.fired += count
            self._silent = torch.where(count > 0, 0, self._silent + 1)
        self._update(gradients)
        return loss.item()

    def _revive(
        self, dead: Tensor, x: Tensor, before: Tensor, strength: Tensor, error: Tensor, gradients: list[Tensor]
    ) -> Tensor:
        """AuxK: the loss of dead features that reconstruct -error; their gradients are added to `gradients`.

        dead: int64 [features].
        """
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
        return int(self._is_dead().sum())

    def _is_dead(self) -> Tensor:
        return self._silent > self._cfg.dead_after_steps

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
