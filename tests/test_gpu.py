"""What a GPU computes is what the CPU computes, under the deterministic algorithms that every stage switches on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import VOCABULARY, save_as_cell
from torch import Tensor
from transformers import PreTrainedModel

from feature_survival.catalogue import Site
from feature_survival.compression.calibrate import compress
from feature_survival.metrics.attributes import token_attributes
from feature_survival.metrics.causal import measure_effects
from feature_survival.metrics.language import mean_cross_entropy
from feature_survival.metrics.meaning import measure_meaning, prepare
from feature_survival.metrics.stability import match
from feature_survival.metrics.transfer import measure_transfer
from feature_survival.models import load, prunable_weights, use_device
from feature_survival.recipes import Recipe
from feature_survival.sae import Dictionary

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    use_device("auto")


def dictionary(seed: int, device: str) -> Dictionary:
    draw = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(64, 32, generator=draw), dim=1).to(device)
    return Dictionary(decoder.T, torch.zeros(64, device=device), decoder, torch.zeros(32, device=device), k=4)


def test_transfer_is_measured_on_the_gpu_as_on_the_cpu() -> None:
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    y = x + 0.1
    on_cpu, on_gpu = (measure_transfer(dictionary(0, device), x.split(200), y.split(200)) for device in ("cpu", "cuda"))
    assert on_gpu.jaccard == pytest.approx(on_cpu.jaccard, abs=1e-3)
    assert on_gpu.compressed.fvu == pytest.approx(on_cpu.compressed.fvu, rel=1e-3)
    torch.testing.assert_close(on_gpu.correlation, on_cpu.correlation, rtol=0, atol=1e-3)
    torch.testing.assert_close(on_gpu.dense.max_activation, on_cpu.dense.max_activation, rtol=0, atol=1e-3)


def test_features_are_matched_on_the_gpu_as_on_the_cpu() -> None:
    alive = torch.arange(64) % 3 > 0
    on_cpu, on_gpu = (match(dictionary(0, device), dictionary(1, device), alive) for device in ("cpu", "cuda"))
    for name, expected in on_cpu.items():
        torch.testing.assert_close(on_gpu[name], expected, rtol=0, atol=1e-4, equal_nan=True)


def test_effects_are_measured_on_the_gpu_as_on_the_cpu(llama: PreTrainedModel, tokens: Tensor) -> None:
    features, mean = torch.arange(64), torch.full((64,), 0.1, dtype=torch.float64)
    on_cpu, on_gpu = (
        measure_effects(llama.to(device), Site("resid_post", 1), dictionary(0, device), features, mean, tokens, 3, 4)
        for device in ("cpu", "cuda")
    )
    assert torch.equal(on_gpu.contexts, on_cpu.contexts)
    torch.testing.assert_close(on_gpu.cross_entropy, on_cpu.cross_entropy, rtol=0, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("magnitude", 0.5, "model"),
        Recipe("random", 0.5),
        Recipe("wanda", 0.5, sequential=False),
        Recipe("sparsegpt", 0.5, "2:4", sequential=False),
        Recipe("rtn", bits=4, quantization_group=16),
        Recipe("awq", bits=4, quantization_group=16, sequential=False),
        Recipe("svd", 0.5),
        Recipe("activation-svd", 0.5, sequential=False),
    ],
    ids=lambda recipe: recipe.method,
)
def test_a_model_is_compressed_on_the_gpu_as_on_the_cpu(llama: PreTrainedModel, tokens: Tensor, recipe: Recipe) -> None:
    base = {name: weight.clone() for name, weight in prunable_weights(llama).items()}
    on_cpu, on_gpu = (compress(llama.to(device), recipe, tokens) for device in ("cpu", "cuda"))
    for name, weight in base.items():
        expected = on_cpu[name].rebuild(weight)
        differs = (on_gpu[name].rebuild(weight.cuda()).cpu() - expected).abs() > 1e-2
        # Sums in another order may decide a tie the other way; SparseGPT then moves the rest of a row.
        assert differs.float().mean() < 0.02, name


def test_a_published_checkpoint_is_measured_on_the_gpu_in_its_own_type(
    llama: PreTrainedModel, tokens: Tensor, tmp_path: Path
) -> None:
    cell = save_as_cell(llama.to(torch.bfloat16), tmp_path)
    entropies = []
    for device in ("cpu", "cuda"):
        use_device(device)
        model = load(cell.base, "auto")
        assert (model.device.type, model.dtype) == (device, torch.bfloat16)
        entropies.append(mean_cross_entropy(model, tokens, 4))
    assert entropies[1] == pytest.approx(entropies[0], rel=1e-2)


def test_masks_on_the_gpu_do_not_depend_on_where_hidden_states_wait(llama: PreTrainedModel, tokens: Tensor) -> None:
    on_device, on_host = (compress(llama.to("cuda"), Recipe("wanda", 0.5), tokens, 4, place) for place in (False, True))
    assert all(torch.equal(form.tensors()["mask"], on_host[name].tensors()["mask"]) for name, form in on_device.items())


def test_what_latents_mean_is_measured_on_the_gpu_as_on_the_cpu(llama: PreTrainedModel) -> None:
    kinds = [" {0}b", "{0}b", "{1}b", "7"]
    texts = [kinds[number % 4].format(chr(97 + number % 5), chr(65 + number % 5)) for number in range(1, VOCABULARY)]
    attributes = token_attributes([None, *texts])
    windows = torch.randint(1, VOCABULARY, (64, 16), generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", "cuda"):
        model = llama.to(device)
        labelled = prepare(model, Site("resid_post", 1), windows, attributes, torch.zeros(32), 4)
        found.append(measure_meaning(model, labelled, dictionary(0, device)))
    assert found[1] == pytest.approx(found[0], abs=0.05, nan_ok=True)
