"""The sparse trainer against sae-lens's: the same start, the same step, the same file, as good an SAE."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SITE_WIDTH as WIDTH
from conftest import contents
from safetensors.torch import load_file, save_file
from test_sae import METADATA, SETTINGS

from feature_survival.activations import Shards, measure_normalization
from feature_survival.artifacts import read_json
from feature_survival.config import Sae, Seed
from feature_survival.metrics.reconstruction import measure_reconstruction
from feature_survival.sae import Dictionary
from feature_survival.trainers import Job, train_saes
from feature_survival.trainers.sae_lens import SaeLensTrainer
from feature_survival.trainers.sparse import SparseTrainer
from feature_survival.trainers.trainer import START_NORM, learning_rate

BOTH = [SparseTrainer, SaeLensTrainer]


def changed(**settings: object) -> Sae:
    return SETTINGS.model_copy(update=settings)


def inputs(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dead_after", [10, 2, 0], ids=["none dead", "some dead", "many dead"])
def test_steps_are_those_of_sae_lens(dead_after: int) -> None:
    cfg = changed(dead_after_steps=dead_after, k=2, expansion=16, auxiliary_coefficient=0.5, learning_rate=1e-4)
    ours, theirs = (trainer(cfg, WIDTH, 6, init=3) for trainer in BOTH)
    assert torch.equal(ours.start, theirs.start)
    dead = []
    for step in range(6):
        x = inputs(64, step)
        assert ours.step(x) == pytest.approx(theirs.step(x), rel=1e-5)
        assert ours.dead() == theirs.dead()
        dead.append(ours.dead())
    assert torch.equal(ours.fired.float(), theirs.fired)
    assert max(dead) > {10: -1, 2: 0, 0: WIDTH // 2}[dead_after]
    mine, expected = ours.weights(), theirs.weights()
    assert mine.keys() == expected.keys()
    for name, weight in expected.items():
        # Adam's first steps are as long where a gradient is nearly zero, whose sign rounding decides.
        off = (mine[name] - weight).abs() > 1e-5 + 1e-3 * weight.abs()
        assert off.double().mean() < 0.01, name


def test_the_learning_rate_is_that_of_sae_lenss_schedule() -> None:
    from sae_lens.training.optim import get_lr_scheduler

    cfg = changed(learning_rate=0.5, warmup_steps=7)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    schedule = get_lr_scheduler("cosineannealing", optimizer, 50, 0.5, 7, 0, 0.05, 1)
    for step in range(50):
        assert learning_rate(cfg, step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        schedule.step()
    assert learning_rate(changed(warmup_steps=0), 0, 50) == SETTINGS.learning_rate


@pytest.mark.parametrize("setting", [{}, {"dead_after_steps": 3, "expansion": 12}], ids=["alive", "dead"])
def test_saes_of_both_trainers_explain_as_much(shards: Shards, tmp_path: Path, setting: dict[str, object]) -> None:
    found = {}
    for trainer in ("sparse", "sae_lens"):
        cfg = changed(trainer=trainer, **setting)
        train_saes([Job(cfg, Seed(0, 0), tmp_path / trainer)], shards, measure_normalization(shards), METADATA)
        found[trainer] = measure_reconstruction(Dictionary.read(tmp_path / trainer), shards.batches(500)).fvu
    assert found["sparse"] == pytest.approx(found["sae_lens"], rel=0.02)


def test_files_are_those_that_sae_lens_itself_writes(shards: Shards, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    train_saes([Job(SETTINGS, Seed(0, 0), ours)], shards, measure_normalization(shards), METADATA)
    trainer = SaeLensTrainer(SETTINGS, WIDTH, 1, init=0)
    trainer.step(inputs(64, 0))
    trainer._sae.save_inference_model(tmp_path / "theirs")
    written, expected = (json.loads((folder / "cfg.json").read_text()) for folder in (ours, tmp_path / "theirs"))
    metadata = written.pop("metadata")
    expected.pop("metadata")
    assert written == expected
    assert metadata["trainer"] == "sparse"
    tensors, others = (load_file(folder / "sae_weights.safetensors") for folder in (ours, tmp_path / "theirs"))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in others.items()
    }


def test_saes_trained_together_are_those_trained_alone(shards: Shards, tmp_path: Path) -> None:
    cfgs = [SETTINGS, changed(k=2), changed(expansion=2), changed(epochs=1)]
    jobs = [
        Job(cfg, Seed(init, data), Path(f"{n}-{init}-{data}"))
        for n, cfg in enumerate(cfgs)
        for init in (0, 1)
        for data in (0, 1)
    ]
    normalization = measure_normalization(shards)
    train_saes([job._replace(folder=tmp_path / "together" / job.folder) for job in jobs], shards, normalization, {})
    for job in jobs[::3]:
        alone = tmp_path / "alone" / job.folder
        train_saes([job._replace(folder=alone)], shards, normalization, {})
        assert contents(alone) == contents(tmp_path / "together" / job.folder)
    assert len({(tmp_path / "together" / job.folder / "sae_weights.safetensors").read_bytes() for job in jobs}) == 16


def test_metadata_says_how_many_features_fire_and_are_dead(shards: Shards, tmp_path: Path) -> None:
    train_saes(
        [Job(changed(expansion=12), Seed(0, 0), tmp_path / "a")], shards, measure_normalization(shards), METADATA
    )
    metadata = read_json(tmp_path / "a" / "cfg.json")["metadata"]
    assert 0 < metadata["l0"] <= SETTINGS.k
    assert 0 <= metadata["num_dead_features"] < 12 * WIDTH


def test_an_sae_starts_as_its_own_transpose_with_short_rows() -> None:
    trainer = SparseTrainer(SETTINGS, WIDTH, 5, init=0)
    weights = trainer.weights()
    torch.testing.assert_close(trainer.start.norm(dim=1), torch.full((4 * WIDTH,), START_NORM))
    torch.testing.assert_close(weights["W_enc"].T, trainer.start * START_NORM)
    assert torch.equal(weights["b_enc"], torch.zeros(4 * WIDTH))


def test_training_in_the_default_way_never_imports_sae_lens(shards: Shards, tmp_path: Path) -> None:
    save_file({"activations": shards.gather(torch.arange(500)).half()}, tmp_path / "sae-00000.safetensors")
    code = f"""
import sys
from pathlib import Path
from feature_survival.activations import Shards, measure_normalization
from feature_survival.config import Sae, Seed
from feature_survival.trainers import Job, train_saes
shards = Shards(Path({str(tmp_path)!r}), "sae")
job = Job(Sae(**{SETTINGS.model_dump()}), Seed(0, 0), Path({str(tmp_path / "sae")!r}))
train_saes([job], shards, measure_normalization(shards), {{}})
sys.exit("sae_lens" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert Dictionary.read(tmp_path / "sae").k == SETTINGS.k
