"""Cached activations: the same rows whatever the batches, and their normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import truncate
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from feature_survival.activations import (
    Shards,
    measure_normalization,
    read_normalization,
    write_normalization,
    write_shards,
)
from feature_survival.catalogue import Site
from feature_survival.forward import read_site
from feature_survival.schema import InputError

SITE = Site("resid_post", 1)
ROWS = 6 * 15


@pytest.fixture
def shards(llama: PreTrainedModel, tokens: Tensor, tmp_path: Path) -> Shards:
    write_shards(llama, SITE, tokens, 2, 4, tmp_path, "sae")
    return Shards(tmp_path, "sae")


def direct(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return read_site(model, SITE, tokens)[:, 1:].reshape(ROWS, -1).half().float()


@pytest.mark.parametrize(("batch", "shard", "files"), [(6, 6, 1), (1, 6, 1), (2, 1, 6), (4, 5, 2), (100, 100, 1)])
def test_shards_hold_the_models_rows_in_order_whatever_batch_and_shard(
    llama: PreTrainedModel, tokens: Tensor, tmp_path: Path, batch: int, shard: int, files: int
) -> None:
    write_shards(llama, SITE, tokens, batch, shard, tmp_path, "sae")
    assert len(list(tmp_path.iterdir())) == files
    shards = Shards(tmp_path, "sae")
    assert (len(shards), shards.width) == (ROWS, 32)
    # A batch's shape may change the last bit of a product, and so half precision's rounding.
    torch.testing.assert_close(shards.gather(torch.arange(ROWS)), direct(llama, tokens), rtol=2e-3, atol=1e-4)


def test_the_first_position_of_every_window_is_dropped(llama: PreTrainedModel, tokens: Tensor, shards: Shards) -> None:
    whole = read_site(llama, SITE, tokens).half().float()
    rows = shards.gather(torch.arange(ROWS)).view(6, 15, 32)
    torch.testing.assert_close(rows[:, 0], whole[:, 1], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(rows[:, -1], whole[:, -1], rtol=2e-3, atol=1e-4)


def test_gathering_equals_direct_indexing_across_shards(shards: Shards) -> None:
    whole = torch.cat(list(shards.batches(ROWS)))
    rows = torch.randint(0, ROWS, (200,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(shards.gather(rows), whole[rows])
    for edge in (0, 59, 60, ROWS - 1):
        assert torch.equal(shards.gather(torch.tensor([edge]))[0], whole[edge])


@pytest.mark.parametrize("size", [1, 7, 60, 1000])
def test_batches_give_every_row_once_in_order(shards: Shards, size: int) -> None:
    batches = list(shards.batches(size))
    assert max(len(batch) for batch in batches) <= size
    assert torch.equal(torch.cat(batches), shards.gather(torch.arange(ROWS)))


@pytest.mark.parametrize("batch", [7, 65536])
def test_normalisation_equals_numpy(shards: Shards, batch: int) -> None:
    x = shards.gather(torch.arange(ROWS)).double().numpy()
    mean = x.mean(0)
    scale = np.linalg.norm(x - mean, axis=1).mean() / np.sqrt(32)
    found = measure_normalization(shards, batch)
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=1e-6, atol=1e-7)
    assert found.scale == pytest.approx(scale, rel=1e-9)


def test_normalisation_survives_its_file(shards: Shards, tmp_path: Path) -> None:
    found = measure_normalization(shards)
    write_normalization(found, tmp_path)
    read = read_normalization(tmp_path)
    assert torch.equal(read.mean, found.mean)
    assert read.scale == pytest.approx(found.scale, rel=1e-6)


def test_activations_beyond_half_precision_stop_the_stage_by_name(
    llama: PreTrainedModel, tokens: Tensor, tmp_path: Path
) -> None:
    llama.get_input_embeddings().weight.data.mul_(1e7)
    with pytest.raises(InputError, match=r"activations at resid_post\.1 are not finite"):
        write_shards(llama, SITE, tokens, 2, 4, tmp_path, "sae")


def test_missing_truncated_and_foreign_shards_are_refused(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no evaluation shards; run the cache stage"):
        Shards(tmp_path, "evaluation")
    path = tmp_path / "sae-00001.safetensors"
    save_file({"others": torch.ones(3, 32)}, path)
    with pytest.raises(InputError, match="a sae shard is truncated or foreign"):
        Shards(tmp_path, "sae")
    truncate(path)
    with pytest.raises(InputError, match="a sae shard is truncated or foreign"):
        Shards(tmp_path, "sae")
