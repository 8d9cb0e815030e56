"""Training the miniature base models."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, contents, entry
from safetensors.torch import load_file
from torch import Tensor

from feature_survival.catalogue import Model
from feature_survival.models import build
from feature_survival.pretrain import learning_rate, make_base, token_order, train
from feature_survival.schema import InputError


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    training = entry("LlamaForCausalLM", learning_rate=0.01, warmup_steps=4).weights.training
    rates = [learning_rate(step, 104, training) for step in range(105)]
    assert rates[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert rates[54] == pytest.approx(0.0055)  # half way down
    assert rates[104] == pytest.approx(0.001)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_the_learning_rate_starts_at_its_peak_without_warm_up() -> None:
    assert learning_rate(0, 10, entry("LlamaForCausalLM", warmup_steps=0).weights.training) == pytest.approx(5e-3)


def test_the_order_of_windows_covers_each_once_an_epoch() -> None:
    order = token_order(available=12, steps=9, batch=4, seed=0)
    assert order.shape == (9, 4)
    epochs = order.reshape(3, 12)
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(order, token_order(12, 9, 4, seed=0))
    assert not np.array_equal(order, token_order(12, 9, 4, seed=1))


def test_the_order_of_windows_ends_in_the_middle_of_an_epoch() -> None:
    order = token_order(available=5, steps=4, batch=2, seed=0)
    assert order.shape == (4, 2)
    assert sorted(order.flatten()[:5]) == list(range(5))


@pytest.mark.parametrize("steps", [1, 10])
def test_a_diverging_training_stops_and_names_stage_and_step(tokens: Tensor, steps: int) -> None:
    spec = entry("LlamaForCausalLM", learning_rate=1e38, warmup_steps=0, tokens=steps * 64)
    torch.manual_seed(0)
    with pytest.raises(InputError, match=rf"stage base: .*(nan|inf).* at step \d+ of {steps}\b"):
        train(build(spec), spec.weights.training, tokens, tokens, lambda row: None)


def made(spec: Model, corpus: Path, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    make_base(spec, spec.weights.training, 16, corpus, folder, folder / "log.csv")
    return contents(folder)


def test_two_trainings_of_one_seed_give_the_same_bytes_and_another_seed_others(corpus: Path, tmp_path: Path) -> None:
    spec = entry("LlamaForCausalLM")
    first, second = (made(spec, corpus, tmp_path / name) for name in ("first", "second"))
    assert first == second
    assert {"config.json", "model.safetensors", "tokenizer.json", "log.csv"} <= first.keys()
    other = made(entry("LlamaForCausalLM", seed=1), corpus, tmp_path / "other")
    assert other["model.safetensors"] != first["model.safetensors"]
    assert other["tokenizer.json"] == first["tokenizer.json"]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_learns_and_is_stored_in_bfloat16(architecture: str, corpus: Path, tmp_path: Path) -> None:
    made(entry(architecture, tokens=64 * 25), corpus, tmp_path / "base")
    rows = list(csv.DictReader((tmp_path / "base" / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 26))
    assert int(rows[-1]["tokens"]) == 64 * 25
    assert float(rows[-1]["held_out_loss"]) < float(rows[0]["held_out_loss"]) - 0.5
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
