"""One flipped bit, with the file's time and size as they were: `feature-survival check --artifacts` names the file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pipeline
import pytest
from ruamel.yaml import YAML

from feature_survival.dvclock import check_bytes, damaged
from feature_survival.schema import InputError

from .conftest import FULL, Tried

FILES = {
    "base weights": "artifacts/tiny/base/model.safetensors",
    "masks": "artifacts/tiny/prune/wanda-50/weights.safetensors",
    "activation shards": "artifacts/tiny/dense/cache/sae-00000.safetensors",
    "SAE": "artifacts/tiny/dense/sae/init0-data0/sae_weights.safetensors",
    "released SAE": "artifacts/saes/tiny/dense/init0-data0/sae_weights.safetensors",
    "metrics.json": "artifacts/metrics/tiny/wanda-50/metrics.json",
    "features.parquet": "artifacts/metrics/tiny/dense/features.parquet",
    "table": "results/survival.csv",
}
# What is not pushed has one hash in dvc.lock, of the folder.
UNCACHED = ("artifacts/tiny/prune", "artifacts/tiny/dense/cache", "artifacts/tiny/dense/sae")


def flip(path: Path) -> None:
    """Flip one bit in the middle, as a disk would: nothing else of the file tells."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_every_flipped_file_is_named_and_whole_again_once_deleted(recorded: Path, tmp_path: Path, tried: Tried) -> None:
    folder = copy(recorded, tmp_path / "project")
    assert damaged(folder) == []
    for path in FILES.values():
        flip(folder / path)
    named = {next((top for top in UNCACHED if path.startswith(top)), path) for path in FILES.values()}
    assert damaged(folder) == sorted(named)
    with pytest.raises(InputError) as refused:
        check_bytes(folder)
    assert str(refused.value).startswith("artifacts/metrics/tiny/dense/features.parquet: not the bytes that dvc.lock n")
    assert "\n" not in str(refused.value) and str(refused.value).endswith("delete it and run: dvc repro")
    if FULL:
        before = pipeline.outcome(recorded)
        for path in FILES.values():
            (folder / path).unlink()
        pipeline.dvc(folder, "repro")
        assert pipeline.outcome(folder) == before and damaged(folder) == []
    for kind in FILES:
        tried(f"a flipped bit in {kind}", 1, "named by check --artifacts; deleted, it is whole again")


def in_store(folder: Path, stage: str, number: int = 0) -> Path:
    """The store's list of the files of a stage's output."""
    value = YAML(typ="safe").load(folder / "dvc.lock")["stages"][stage]["outs"][number]["md5"]
    return folder / "store" / "files" / "md5" / value[:2] / value[2:]


@pytest.mark.parametrize(
    ("program", "what"), [("dvc", "file"), ("feature-survival", "file"), ("feature-survival", "list")]
)
def test_an_object_damaged_in_the_store_is_refused_and_its_artifact_named(
    recorded: Path, tmp_path: Path, tried: Tried, program: str, what: str
) -> None:
    folder = tmp_path / "clone"
    assert pipeline.run(tmp_path, "git", "clone", "--quiet", str(recorded), "clone").returncode == 0
    listing = in_store(folder, "base@tiny")
    entries = YAML(typ="safe").load(listing)
    (value,) = (one["md5"] for one in entries if one["relpath"] == "model.safetensors")
    flip(listing if what == "list" else listing.parent.parent / value[:2] / value[2:])
    ended = pipeline.run(folder, program, "pull", DVC_SITE_CACHE_DIR=str(tmp_path / "state"))
    assert ended.returncode == (1 if program == "dvc" else 2)
    assert not (folder / FILES["base weights"]).exists()
    assert "artifacts/tiny/base" in ended.stderr or what == "list"
    if program == "feature-survival":
        assert ended.stderr.startswith("error: remote 'bundled': ") and ended.stderr.count("\n") == 1, ended.stderr
    tried(f"a flipped bit in the store, in a {what}", 1, "refused by the pull" + ", by name" * (what == "file"))
