"""What can be known to be wrong before anything runs: names, shapes, claims."""

from __future__ import annotations

from pathlib import Path

from feature_survival.config import Params
from feature_survival.figures import FIGURES
from feature_survival.schema import unknown


def check(params: Params, root: Path) -> str:
    """What the grid holds, in one line; InputError where params.yaml or claims.yaml asks for what cannot be."""
    from feature_survival.claims import load as load_claims

    for name in params.study.figures:
        if name not in FIGURES:
            raise unknown("params.yaml: study.figures", name, FIGURES)
    _check_recipes(params)
    claims = load_claims(root / "claims.yaml")
    cells = len(params.study.models) * len(params.study.conditions)
    grid = f"{len(params.study.models)} models x {len(params.study.conditions)} conditions = {cells} cells"
    sites = f"{len(params.variants.models)} models x {len(params.variants.sites)} sites"
    compressed = f"{len(params.compressed()) - 1} ways to compress a model"
    return f"params.yaml: {grid}; variants: {sites}; {compressed}; claims.yaml: {len(claims)} claims"


def _check_recipes(params: Params) -> None:
    """Every condition against the shapes of every model's matrices, without their weights."""
    import torch

    from feature_survival.compression.methods import check_fits
    from feature_survival.models import build, prunable_weights

    for name in params.study.bases:
        with torch.device("meta"):
            weights = prunable_weights(build(params.model(name)))
        own = params.for_model(name)
        for condition in own.compressed():
            check_fits(own.recipe(condition), weights, f"params.yaml: conditions.{condition} on {name}")
