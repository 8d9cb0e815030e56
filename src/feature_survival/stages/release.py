"""Stage `release`: the SAEs of a cell that are pushed to a remote; those of other cells are made again in seconds."""

from __future__ import annotations

import shutil

from feature_survival.artifacts import Cell, atomic_directory
from feature_survival.config import Params
from feature_survival.schema import InputError


def run(params: Params, cell: Cell) -> None:
    """Copy the cell's SAEs, a folder a seed, in SAELens's format."""
    with atomic_directory(cell.released) as folder:
        for seed in params.sae_seeds(cell.condition):
            if not cell.sae_of(seed).is_dir():
                raise InputError(f"{cell.sae_of(seed)}: no such folder; run stage sae of {cell}")
            shutil.copytree(cell.sae_of(seed), folder / seed.name)
