"""Stage `prune`: the masks of a cell."""

from __future__ import annotations

from feature_survival.artifacts import Cell, atomic_directory
from feature_survival.compression.calibrate import prune
from feature_survival.compression.condition import write_condition
from feature_survival.compression.scores import SCORES
from feature_survival.config import Params
from feature_survival.corpus import read_tokenizer, windows
from feature_survival.models import load


def run(params: Params, cell: Cell) -> None:
    """Score, mask and pack; the dense condition has no masks."""
    condition = params.pruning(cell.condition)
    masks = {}
    if condition.method != "dense":
        tokens = None
        if SCORES[condition.method].needs_inputs:
            tokenizer = read_tokenizer(cell.base / "tokenizer.json")
            count = params.prune.calibration_windows
            tokens = windows(cell.root / "data", "calibration", tokenizer, params.window, count)
        masks = prune(load(cell.base), *condition, tokens, params.prune.batch_windows)
    with atomic_directory(cell.prune) as folder:
        write_condition(masks, folder)
