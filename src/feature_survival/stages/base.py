"""Stage `base`: tokenizer and dense weights of a model."""

from __future__ import annotations

from pathlib import Path

from feature_survival.artifacts import atomic_directory, atomic_file, base_folder, training_log
from feature_survival.config import Params
from feature_survival.pretrain import make_base


def run(params: Params, root: Path, name: str) -> None:
    """Train a catalogue model and write its base folder."""
    with atomic_directory(base_folder(root, name)) as folder, atomic_file(training_log(root, name)) as log:
        make_base(params.model(name), params.window, root / "data", folder, log)
