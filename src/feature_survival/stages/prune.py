"""Stage `prune`: every condition of a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from feature_survival.artifacts import atomic_directory, base_folder, prune_folder, text_folder, write_json
from feature_survival.compression.calibrate import compress
from feature_survival.compression.condition import write_condition
from feature_survival.compression.methods import METHODS, check_fits
from feature_survival.config import Params
from feature_survival.models import load, prunable_weights
from feature_survival.progress import progress
from feature_survival.text import read_vocabulary, windows


def run(params: Params, root: Path, name: str) -> None:
    """Compress the model in every way that a study asks for; the dense condition changes nothing.

    What does not fit the model's matrices is refused before any computing.
    """
    base = base_folder(root, name)
    recipes = {condition: params.recipe(condition) for condition in params.compressed()}
    model = load(base, params.model(name).dtype)
    weights = prunable_weights(model)
    for condition, recipe in recipes.items():
        check_fits(recipe, weights, f"conditions.{condition} on {name}")
    settings, text = params.prune, text_folder(root, name)
    tokens = windows(text, "calibration", read_vocabulary(base), params.window, settings.calibration_windows)
    with atomic_directory(prune_folder(root, name)) as folder:
        for condition, recipe in progress(recipes.items(), f"prune {name}", len(recipes), "condition"):
            forms = {}
            if recipe.method in METHODS:
                forms = compress(model, recipe, tokens, settings.batch_windows, settings.hidden_states == "host")
            (folder / condition).mkdir()
            write_condition(forms, weights, folder / condition)
        # Stage `variants` depends on this: a further condition of the first study leaves it alone.
        names = params.variants.conditions(params.variants.sites[0])
        write_json(folder / "variants.json", {condition: _digest(folder / condition) for condition in names})


def _digest(folder: Path) -> str:
    """SHA-256 over the files of a folder."""
    found = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        found.update(file.read_bytes())
    return found.hexdigest()
