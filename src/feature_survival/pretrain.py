"""A tokenizer and a miniature language model, trained on the corpus's `lm` split."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from feature_survival.catalogue import Model, Training
from feature_survival.forward import cross_entropy
from feature_survival.models import build, compute_device
from feature_survival.progress import progress
from feature_survival.schema import InputError
from feature_survival.text import BOS, Vocabulary, documents, train_tokenizer, windows

HELD_OUT_WINDOWS = 128  # of the calibration split, which is never trained on
EVALUATIONS = 20
LOG_COLUMNS = ("step", "tokens", "train_loss", "held_out_loss")


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Linear warm-up to the peak, then a cosine down to a tenth of it."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress_made = (step - training.warmup_steps) / max(1, steps - training.warmup_steps)
    return training.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress_made))


def token_order(available: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """Window numbers [steps, batch]: one shuffled epoch after another."""
    rng = np.random.default_rng(seed)
    epochs = math.ceil(steps * batch / available)
    return np.concatenate([rng.permutation(available) for _ in range(epochs)])[: steps * batch].reshape(steps, batch)


@torch.no_grad()
def _held_out_loss(model: PreTrainedModel, held_out: Tensor, batch: int) -> float:
    model.eval()
    losses = [cross_entropy(model, chunk).mean(1) for chunk in held_out.split(batch)]
    model.train()
    return torch.cat(losses).mean().item()


def train(
    model: PreTrainedModel,
    training: Training,
    tokens: Tensor,
    held_out: Tensor,
    log: Callable[[dict[str, float]], object],
) -> None:
    """Train in place with fused AdamW under bf16 autocast; decay on matrices only.

    tokens, held_out: int64 [windows, position]. `log` gets EVALUATIONS rows of step, tokens, losses in nats.
    Raises InputError naming the step where the loss is no longer finite.
    """
    steps = max(1, training.tokens // (training.batch_windows * tokens.shape[1]))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    order = token_order(len(tokens), steps, training.batch_windows, training.seed)
    every = max(1, steps // EVALUATIONS)
    model.train()
    for step in progress(range(steps), "base", steps, "step"):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, training)
        batch = tokens[torch.from_numpy(order[step])]
        # The CPU's flash attention takes twice as long in bfloat16, there and back, as attention written out.
        attention = sdpa_kernel(SDPBackend.MATH) if model.device.type == "cpu" else nullcontext()
        with torch.autocast(model.device.type, dtype=torch.bfloat16), attention:
            loss = cross_entropy(model, batch).mean()
        if not math.isfinite(loss.item()):
            raise InputError(f"stage base: loss is {loss.item()} at step {step + 1} of {steps}; lower learning_rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % every == 0 or step + 1 == steps:
            held_out_loss = _held_out_loss(model, held_out, training.batch_windows)
            if not math.isfinite(held_out_loss):
                raise InputError(
                    f"stage base: held-out loss is {held_out_loss} at step {step + 1} of {steps}; lower learning_rate"
                )
            log(
                {
                    "step": step + 1,
                    "tokens": (step + 1) * batch.numel(),
                    "train_loss": loss.item(),
                    "held_out_loss": held_out_loss,
                }
            )
    model.eval()


def make_base(spec: Model, training: Training, window: int, data: Path, out: Path, log_file: Path) -> None:
    """Train tokenizer and model from the corpus folder `data`; write both to the folder `out`, losses to a CSV.

    Weights are stored in bfloat16: the rounded model *is* the base model.
    """
    tokenizer = train_tokenizer(documents(data / "lm.jsonl"), spec.vocabulary)
    vocabulary = Vocabulary(tokenizer, BOS)
    tokens = windows(data, "lm", vocabulary, window, None)
    held_out = windows(data, "calibration", vocabulary, window, HELD_OUT_WINDOWS)
    torch.manual_seed(training.seed)
    model = build(spec).to(compute_device())
    with log_file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, LOG_COLUMNS, lineterminator="\n")
        writer.writeheader()
        train(
            model,
            training,
            tokens,
            held_out,
            lambda row: writer.writerow({key: f"{value:.6g}" for key, value in row.items()}),
        )
    model.to(torch.bfloat16).save_pretrained(out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>").save_pretrained(out)
